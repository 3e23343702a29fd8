"""mathrl: reinforcement learning with verifiable rewards for mathematics."""

__version__ = "0.1.0"
