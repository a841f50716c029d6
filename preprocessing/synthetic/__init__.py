"""Synthetic logs with the shape of a real one."""
