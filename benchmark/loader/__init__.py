"""`python -m benchmark loader`: loading epochs without training."""
