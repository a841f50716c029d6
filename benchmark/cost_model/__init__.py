"""`python -m benchmark cost-model`: upper bounds on GPU throughput, from operator counts."""
