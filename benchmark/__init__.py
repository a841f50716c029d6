"""Benchmarks, starting with the demo; product code does not import this package."""

from workflows.device.cores import share_cores

share_cores()  # before any module imports torch, NumPy or Arrow
