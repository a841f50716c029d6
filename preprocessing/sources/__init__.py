"""Raw interaction logs: detect their format and read them piece by piece."""
