"""Benchmarks, results with intervals, and paired differences."""
