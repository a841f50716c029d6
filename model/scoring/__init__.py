"""Logits of a trained network for pairs and for all items."""
