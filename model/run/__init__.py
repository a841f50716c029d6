"""`train.py`: from flags to a run folder."""
