"""`python -m benchmark peers`: other recommenders on the same split, ranked by the same code."""
