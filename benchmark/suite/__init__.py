"""`python -m benchmark all` and `compare`: all parts in one run, their page, and what has changed since another run."""
