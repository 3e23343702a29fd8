"""The policy and its training forward."""

from mathrl.policy.model import Policy

__all__ = ["Policy"]
