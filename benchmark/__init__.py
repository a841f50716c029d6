"""Measurements and the demo, which is the first of them; nothing of the product imports this."""
