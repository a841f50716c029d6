"""Ranking metrics of a network on held-out interactions."""
