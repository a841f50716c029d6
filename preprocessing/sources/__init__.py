"""Raw interaction logs: what they look like, and how to read them piece by piece."""
