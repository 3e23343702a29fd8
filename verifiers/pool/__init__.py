"""Verdicts in worker processes, under limits on time and memory."""
