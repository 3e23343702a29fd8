"""Imported by vLLM in its core's process, and nowhere else; for a core that has no scheduler of ours."""

from mathrl.rollout.core_process import belong_to_trainer

belong_to_trainer()


class WorkerExtension:
    """What vLLM mixes into its workers: nothing."""
