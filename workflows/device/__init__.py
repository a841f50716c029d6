"""The device door: the only modules that look for a GPU and import its libraries."""

DEVICES = ("auto", "cpu", "cuda")  # of --device; "auto" takes a GPU if one is usable
