"""Processes of a run: how they start, and what they exchange."""
