"""`python -m benchmark pipeline`: from log to prepared folder, against plain pandas."""
