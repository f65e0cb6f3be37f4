"""Fine-tuning: `python -m minillm.tune --weights P --data F --output D`.

Read `training.py` first: it is the loop, from top to bottom. What it goes through is made in three steps: `data.py`
reads lines of JSON, `masking.py` makes token ids of them and says which are learnt, `packing.py` makes batches.
What it lowers is in `objectives.py`: the loss of what comes next, of preferences (`preference.py`) or of a teacher's
words. `optimizers.py` has the update, `state.py` what is kept of a run, `budget.py` what it takes, before anything is
loaded, and `report.py` what is left to be looked at. What several processes do otherwise is in `team.py`: they share
out rows and weights (`sharded.py`) or every layer (`split.py`).
"""
