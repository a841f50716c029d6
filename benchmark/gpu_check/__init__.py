"""`python -m benchmark gpu-check`: every check that needs a GPU, in one report."""
