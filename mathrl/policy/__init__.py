"""The policy and its training forward."""
