"""What stands between this program and files or texts by strangers.

`files.py` and `jsonfile.py` read with limits, `parsing.py` is the guard around parsers of others, `screen.py` keeps
what files say from steering a terminal, and `writing.py` leaves nothing half written.
"""
