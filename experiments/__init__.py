"""One research question per file. Run one with `scripts/run NAME` or `python -m experiments.NAME`."""
