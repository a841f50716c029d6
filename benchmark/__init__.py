"""Benchmarks, starting with the demo; product code does not import this package."""
