"""`python -m benchmark all` and `compare`: all parts in one run, their page, and the changes since another run."""
