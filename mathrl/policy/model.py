"""The policy: a frozen base with a LoRA adapter. With the adapter off it is the reference."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from torch.nn import Parameter

from mathrl.config import Config, UpdateConfig
from mathrl.errors import UserError
from mathrl.policy.loading import ADAPTER, load_policy_parts
from mathrl.policy.logprobs import token_logprobs
from mathrl.policy.lora import fuse
from mathrl.policy.trunk import Trunk
from mathrl.types import Adapter, Batch, TokenOutputs

log = logging.getLogger(__name__)


class Policy:
    """A causal LM that says how likely its completions are, and what its trainable adapter is.

    Args:
        model: peft model around a transformers causal LM; its adapter ``default`` trains.
        tokenizer: with pad and end tokens.
        update: how the training forward is computed (sharing, fusing, compiling, checkpointing); whether
            ``compile`` "auto" compiles is the trainer's to say.
        temperature: of the sampling; log-probabilities are of logits / temperature unless a call says other.

    Raises:
        UserError: the model's logits are not hidden states times a head (soft-capped or scaled logits).
    """

    def __init__(
        self, model: PeftModel, tokenizer: Any, update: UpdateConfig, temperature: float = 1.0
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.pad_id: int = tokenizer.pad_token_id
        self.eos_id: int = tokenizer.eos_token_id
        self.temperature = temperature
        self.version = 0  # updates so far; the update adds one
        self.value_model: Callable[[Batch], Tensor] | None = None  # (B, T) values of a batch
        self._lora_layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        self._dropout = model.peft_config[ADAPTER].lora_dropout > 0
        if update.fused_lora:
            fuse(model)
        base = model.get_base_model()
        self.trunk = Trunk(
            base,
            share_prompts=update.share_prompts,
            gradient_checkpointing=update.gradient_checkpointing,
        )
        self.compile(update.compile is True)
        if self.trunk.fallback_reason:
            log.warning("plain training forward, a padded row a completion: %s", self.trunk.fallback_reason)
            self._check_head()
            if update.gradient_checkpointing:
                base.gradient_checkpointing_enable({"use_reentrant": False})

    @classmethod
    def from_pretrained(cls, path: str | Path, config: Config) -> Policy:
        """The policy of a recipe, its reference at ``path`` (a folder or hub name).

        Raises:
            UserError: no model, tokenizer or device there, or targets that fit no layer.
        """
        model, tokenizer = load_policy_parts(str(path), config)
        return cls(model, tokenizer, config.update, config.rollout.temperature)

    def compile(self, on: bool) -> None:
        """Compile layers and log-probabilities from now on, where the device is CUDA, or nothing any more."""
        self.compiled = on and self.device.type == "cuda"
        self.trunk.compile(self.compiled)

    @property
    def device(self) -> torch.device:
        return self.head_weight().device

    def trainable_parameters(self) -> list[Parameter]:
        """The adapter's masters, float32."""
        return [p for name, p in self.model.named_parameters() if "lora_" in name and f".{ADAPTER}." in name]

    def head_weight(self) -> Tensor:
        """(V, D), frozen."""
        return self.model.get_base_model().get_output_embeddings().weight

    def logprobs(
        self,
        batch: Batch,
        *,
        entropy: bool = False,
        reference: bool = False,
        temperature: float | None = None,
    ) -> TokenOutputs:
        """Log-probabilities (and entropy, without gradient) of the batch's completion tokens.

        Differentiable in the adapter unless ``reference``, which computes with the adapter off. Results lie
        on the policy's device; masked places hold 0.
        """
        hidden, layout = self._states(batch, reference)
        logprobs, nats = token_logprobs(
            hidden,
            self.head_weight(),
            layout.target,
            temperature=self.temperature if temperature is None else temperature,
            entropy=entropy,
            compiled=self.compiled,
        )
        shape = batch.loss_mask.shape
        return TokenOutputs(
            _place(logprobs, layout.slot, shape), None if nats is None else _place(nats, layout.slot, shape)
        )

    def hidden_states(self, batch: Batch, *, reference: bool = False) -> Tensor:
        """(B, T, D): the final hidden state from which token t is predicted; 0 where masked.

        Differentiable in the adapter; twice inside ``sdpa_kernel(SDPBackend.MATH)``.
        """
        hidden, layout = self._states(batch, reference)
        return _place(hidden, layout.slot, batch.loss_mask.shape)

    def _states(self, batch: Batch, reference: bool) -> tuple[Tensor, Any]:
        if reference:
            with torch.no_grad(), self.reference():
                return self.trunk(batch)
        if not self._dropout or not torch.is_grad_enabled():
            return self.trunk(batch)
        self.model.train()
        try:
            return self.trunk(batch)
        finally:
            self.model.eval()

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is its base: adapters are off."""
        before = [layer._disable_adapters for layer in self._lora_layers]
        try:
            for layer in self._lora_layers:
                layer._disable_adapters = True
            yield
        finally:
            for layer, value in zip(self._lora_layers, before, strict=True):
                layer._disable_adapters = value

    def adapter(self) -> Adapter:
        """A copy of the adapter, in peft's format; tensors on the policy's device."""
        settings = self.model.peft_config[ADAPTER].to_dict()
        return Adapter(settings, {name: p.detach().clone() for name, p in self._by_peft_name.items()})

    @cached_property
    def _by_peft_name(self) -> dict[str, Parameter]:
        """The adapter's masters as peft calls them; asked at every sync, it would walk the whole model."""
        own = {name.replace(f".{ADAPTER}.", "."): p for name, p in self.model.named_parameters()}
        return {name: own[name] for name in get_peft_model_state_dict(self.model, adapter_name=ADAPTER)}

    @torch.no_grad()
    def load_adapter(self, adapter: Adapter) -> None:
        """Take over the tensors of an adapter of the same shape.

        Raises:
            UserError: names or shapes differ from this policy's adapter.
        """
        own = get_peft_model_state_dict(self.model, adapter_name=ADAPTER)
        for name in own.keys() ^ adapter.tensors.keys():
            where = "the policy" if name in own else "the adapter"
            raise UserError(
                f"the adapter does not fit: only {where} has {name!r}; check lora.targets and the model"
            )
        for name, tensor in own.items():
            given = adapter.tensors[name]
            if given.shape != tensor.shape:
                raise UserError(
                    f"the adapter does not fit: {name!r} is {tuple(given.shape)}, not {tuple(tensor.shape)}; "
                    "check lora.rank and the model"
                )
        for name, tensor in own.items():
            tensor.copy_(adapter.tensors[name])

    def save_adapter(self, folder: str | Path) -> None:
        """Write adapter_config.json and adapter_model.safetensors as peft does, all of it or nothing."""
        target = Path(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            self.model.save_pretrained(staging, selected_adapters=[ADAPTER])
            if target.exists():
                shutil.rmtree(target)
            os.replace(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    @torch.no_grad()
    def _check_head(self) -> None:
        """An unknown architecture may do more than multiply by its head; then nothing here would be right.

        What its configuration and head say is read first: a cap changes the small logits of a probe by less
        than half precision rounds them.
        """
        base = self.model.get_base_model()
        head, config = base.get_output_embeddings(), base.config
        capped = getattr(config, "final_logit_softcapping", None) is not None
        biased = getattr(head, "bias", None) is not None and bool(head.bias.any())
        ids = torch.arange(1, 9, device=self.device)[None]
        hidden = base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
        given = base(input_ids=ids, use_cache=False).logits.float()
        ours = (hidden @ self.head_weight().t()).float()
        if capped or biased or not torch.allclose(given, ours, rtol=1e-2, atol=1e-2):
            raise UserError(
                f"architecture {config.model_type!r} scales or caps its logits or biases its head, "
                "which the policy cannot reproduce; use a model whose logits are hidden states times the head"
            )


def _place(values: Tensor, slot: Tensor, shape: torch.Size) -> Tensor:
    """(n, …) values at their slots of a zero (B, T, …) tensor."""
    flat = values.new_zeros((shape.numel(), *values.shape[1:]))
    return flat.index_copy(0, slot, values).unflatten(0, shape)
