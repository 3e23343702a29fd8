"""Engines that sample completions: vLLM, and the embedded one."""
