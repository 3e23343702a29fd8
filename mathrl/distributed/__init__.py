"""Ranks: the processes of one run, each with a GPU of its own, and what they agree on, share and sum.

torchrun starts them (commands/launch.py calls it, or a scheduler does) and tells each who it is through the
environment. Every rank holds the same adapter and its own rows. With one process nothing here does anything.
"""
