"""Recommendations of a trained run, in original ids."""
