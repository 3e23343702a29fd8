"""What runs in the process of vLLM's core: our changes there, and the process it is forked from."""
