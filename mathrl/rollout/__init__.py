"""Engines that sample completions: vLLM (core/: what runs in its own process), and the embedded one."""
