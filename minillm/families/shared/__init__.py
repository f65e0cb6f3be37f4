"""What family files share: weight tables and parts of specs (`common.py`), rotary scaling (`rotary.py`); and facts
about families by name: published shapes, names in GGUF, licences."""
