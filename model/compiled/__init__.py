"""Training and scoring on a CPU, compiled by numba."""
