"""`python -m minillm` lists the commands; `python -m minillm COMMAND …` is `python -m minillm.COMMAND …`."""

import sys

from minillm.cli import main

if __name__ == "__main__":
    sys.exit(main())
