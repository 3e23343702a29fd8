"""The value model: a second LoRA adapter with a scalar head on the policy's frozen base.

It costs the adapter and a vector, megabytes, not a second model. It sees what the policy sees: the hidden
state from which token t is predicted, so V_t is the value of the prefix before token t.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn import Parameter

from mathrl.types import Batch, derive_seed

if TYPE_CHECKING:
    from mathrl.policy.model import Policy

ADAPTER = "value"


class ValueModel:
    """Batch -> (B, T) values, 0 where masked; starts at ``initial`` everywhere.

    Args:
        policy: gets the adapter ``value`` beside its own; neither switches the other's gradients off.
        rank: of the LoRA adapter, on the same layers as the policy's; alpha = 2 · rank.
        initial: the head's bias before training, the expected reward.
    """

    def __init__(self, policy: Policy, rank: int, seed: int, initial: float = 0.0):
        self.policy = policy
        trained = [p for p in policy.model.parameters() if p.requires_grad]
        targets = next(iter(policy.model.peft_config.values())).target_modules
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "value"))
            policy.model.add_adapter(ADAPTER, config)
        self._layers = [m for m in policy.model.modules() if isinstance(m, BaseTunerLayer)]
        own = [p for name, p in policy.model.named_parameters() if f".{ADAPTER}." in name]
        width = policy.head_weight().shape[1]
        like = {"device": policy.device, "dtype": own[0].dtype}
        self.head = Parameter(torch.zeros(width, **like))
        self.bias = Parameter(torch.full((), initial, **like))
        self.parameters: list[Parameter] = [*own, self.head, self.bias]
        for parameter in (*trained, *own):  # add_adapter leaves only the active adapter trainable
            parameter.requires_grad_(True)

    def __call__(self, batch: Batch) -> Tensor:
        """(B, T), float32 or wider; differentiable in the value adapter and its head, not in the policy's."""
        with self._active():
            hidden = self.policy.hidden_states(batch)
        values = hidden.to(self.head.dtype) @ self.head + self.bias
        return torch.where(batch.loss_mask.to(values.device), values, 0.0)

    def state_dict(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def load_state_dict(self, state: list[Tensor]) -> None:
        for parameter, saved in zip(self.parameters, state, strict=True):
            parameter.copy_(saved)

    @contextmanager
    def _active(self) -> Iterator[None]:
        """Inside, the model computes with the value adapter.

        peft's set_adapter would also switch gradients off and on; only the choice of adapter is wanted.
        """
        before = [layer._active_adapter for layer in self._layers]
        try:
            for layer in self._layers:
                layer._active_adapter = [ADAPTER]
            yield
        finally:
            for layer, names in zip(self._layers, before, strict=True):
                layer._active_adapter = names
