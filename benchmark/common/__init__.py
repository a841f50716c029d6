"""Shared by the benchmarks: clock, machine, processes measured from outside, results."""
