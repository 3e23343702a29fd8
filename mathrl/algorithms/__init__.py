"""Algorithms as pure functions of tensors: advantages, losses, trust regions, and the table of variants."""
