"""`python -m benchmark training`: samples/s of training against the reference's method."""
