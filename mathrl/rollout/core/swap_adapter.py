"""Another adapter by one message to the core.

For each answer that is waited for the trainer switches threads twice, and while it computes beside that,
Python gives its lock away every 5 ms only.
"""

from __future__ import annotations

import importlib
from typing import Any

METHOD = "mathrl_swap_adapter"
"""Of vLLM's ``EngineCore``, to be called from the trainer's process."""


def take_swaps() -> None:
    """Give vLLM's ``EngineCore`` the method ``METHOD``, in the core's process."""
    core: Any = importlib.import_module("vllm.v1.engine.core").EngineCore
    setattr(core, METHOD, _swap_adapter)


def _swap_adapter(core: Any, old: int | None, name: str, number: int, folder: str | None) -> list[int]:
    """Forget the adapter ``old``, load the one in ``folder`` (None: none).

    Returns:
        The numbers of all adapters that the core holds now; none where it did not load this one.
    """
    if old is not None:
        core.remove_lora(old)
    if folder is not None:
        request: Any = importlib.import_module("vllm.lora.request").LoRARequest
        if not core.add_lora(request(name, number, folder)):
            return []
    return sorted(core.list_loras())
