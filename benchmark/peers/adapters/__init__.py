"""A program for each peer, run by the interpreter of its environment, and one for ours."""
