"""Exact sympy objects of answers."""
