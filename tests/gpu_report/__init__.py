"""Everything that only a GPU can tell, in one run of some minutes that may be cut at any time:

    python -m tests.gpu_report --minutes 12 --out DIR         (make gpu-report)
    python -m tests.gpu_report --list
    python -m tests.gpu_report --only ops decode/llama --minutes 4
    python -m tests.gpu_report --rehearse                     tiny shapes in Triton's interpreter, without a GPU

Read in this order: `steps.py` (what is run), `__main__.py`, `children.py` (each step in processes of its own, with time
limits), `results.py` (what is written), `worker.py` (what runs in such a process); then a file for each step. Nothing
is needed but torch and triton: `lacking.py` stands in for two small packages, and what cannot run says so in a line.
"""
