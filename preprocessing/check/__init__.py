"""`--check`: every problem of a prepared folder, reported at once."""
