"""The sizes of a decoder: how many parameters it has, and what its forward keeps in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mathrl.config import Config
from mathrl.errors import UserError

PACKED_ARCHITECTURES = frozenset({"qwen2", "qwen3", "llama"})
# frequencies that depend on how long the input is would depend on how a stream is packed
LENGTH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})


def why_not_packed(config: Any) -> str:
    """Empty where the packed way (policy/packing.py) applies to a transformers configuration, else why."""
    if config.model_type not in PACKED_ARCHITECTURES:
        return f"architecture {config.model_type!r} has no packed forward"
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        return "the model has sliding-window layers"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in LENGTH_DEPENDENT_ROPE:
        return f"rotary embeddings of type {rope!r} depend on the input's length"
    return ""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama-like decoder."""

    vocab_size: int  # V
    hidden_size: int  # D
    num_layers: int  # L
    num_heads: int  # H
    num_kv_heads: int
    intermediate_size: int  # F
    tied_head: bool
    attention_bias: bool
    head_dim: int
    padded: str = ""  # why its training forward is a padded row a completion; empty: it is packed

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From a transformers configuration."""
        heads = config.num_attention_heads
        return cls(
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            config.intermediate_size,
            bool(getattr(config, "tie_word_embeddings", False)),
            config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False)),
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            why_not_packed(config),
        )

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of a layer's linear maps."""
        wide, q, kv, mlp = self.hidden_size, self.query_size, self.key_size, self.intermediate_size
        return {
            "q_proj": (wide, q),
            "k_proj": (wide, kv),
            "v_proj": (wide, kv),
            "o_proj": (q, wide),
            "gate_proj": (wide, mlp),
            "up_proj": (wide, mlp),
            "down_proj": (mlp, wide),
        }

    @property
    def num_parameters(self) -> int:
        layer = sum(i * o for i, o in self.linears.values()) + 2 * self.hidden_size
        if self.attention_bias:
            layer += self.query_size + 2 * self.key_size
        heads = 1 if self.tied_head else 2
        return heads * self.vocab_size * self.hidden_size + self.num_layers * layer + self.hidden_size

    def adapter_parameters(self, rank: int, targets: str) -> int:
        """Parameters of LoRA on ``targets`` (lora.targets)."""
        names = self.linears if targets == "all-linear" else [name.strip() for name in targets.split(",")]
        return self.num_layers * sum(rank * sum(self.linears[name]) for name in names if name in self.linears)

    def activation_bytes(
        self, itemsize: int, *, rank: int, keys: float, compiled: bool, checkpointing: bool
    ) -> float:
        """What the forward keeps for the backward, bytes a token of the packed stream.

        A layer keeps: each norm's input (in float32, twice, or once as it is when compiled) and output; the
        queries, the attention's output and its log-sum-exp; gathered keys and values; of the MLP the gate,
        its activation, the up projection and their product (compiled: gate and up, the rest is computed
        again).
        Each linear map keeps the adapter's r inner values. With checkpointing only a layer's input stays.

        Args:
            itemsize: bytes of the compute type.
            rank: of the adapter.
            keys: gathered keys a token (a shared prompt's are gathered once a completion).
            compiled: whether the layers are (compiling.py).
            checkpointing: update.gradient_checkpointing.
        """
        if checkpointing:
            return itemsize * self.hidden_size * self.num_layers
        norms = 4 * itemsize * self.hidden_size if compiled else (8 + 2 * itemsize) * self.hidden_size
        attention = itemsize * 2 * (self.query_size + keys * self.key_size) + 4 * self.num_heads
        mlp = itemsize * (2 if compiled else 4) * self.intermediate_size
        inner = itemsize * rank * len(self.linears)
        slope = itemsize * self.hidden_size  # of the log-probability in the last hidden state
        return self.num_layers * (norms + attention + mlp + inner) + slope

    def layer_transient_bytes(self, itemsize: int) -> float:
        """The largest gradients alive at once in a layer's backward, bytes a token."""
        return itemsize * (3 * self.intermediate_size + 3 * self.hidden_size)

    def kv_bytes(self, itemsize: int) -> int:
        """Keys and values of one token."""
        return 2 * self.num_layers * self.key_size * itemsize


# so that a plan needs no download
KNOWN_SHAPES = {
    "qwen2.5-0.5b": Shape(151936, 896, 24, 14, 2, 4864, True, True, 64),
    "qwen2.5-1.5b": Shape(151936, 1536, 28, 12, 2, 8960, True, True, 128),
    "qwen2.5-3b": Shape(151936, 2048, 36, 16, 2, 11008, True, True, 128),
    "qwen2.5-7b": Shape(152064, 3584, 28, 28, 4, 18944, False, True, 128),
}


def known_shape(path: str) -> Shape | None:
    """The sizes of a model on the hub whose name says them."""
    if path.startswith((".", "/", "~")):
        return None
    return KNOWN_SHAPES.get(path.partition("@")[0].rsplit("/", 1)[-1].lower().removesuffix("-instruct"))


def load_shape(config: Config) -> Shape:
    """The model's sizes: of the recipe's own, of a folder, or of the hub; known names need no network.

    Raises:
        UserError: the model's configuration cannot be read.
    """
    model = config.model
    if not model.path:
        from transformers import Qwen2Config

        return Shape.of(
            Qwen2Config(
                vocab_size=model.vocab_size,
                hidden_size=model.hidden_size,
                num_hidden_layers=model.num_layers,
                num_attention_heads=model.num_heads,
                num_key_value_heads=model.num_kv_heads,
                intermediate_size=model.intermediate_size,
                tie_word_embeddings=True,
            )
        )
    if known := known_shape(model.path):
        return known
    from transformers import AutoConfig

    try:
        name, _, revision = (model.path, "", "") if Path(model.path).is_dir() else model.path.partition("@")
        return Shape.of(
            AutoConfig.from_pretrained(
                name, revision=revision or "main", trust_remote_code=model.trust_remote_code
            )
        )
    except (OSError, ValueError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"the sizes of model.path {model.path!r} cannot be read ({reason})") from error
