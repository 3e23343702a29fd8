"""A base model, its tokenizer and a fresh LoRA adapter; what cannot be loaded is one clear sentence."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from mathrl.config import Config, LoraSection, ModelConfig, RunConfig
from mathrl.data.hub import local_model
from mathrl.data.prompts import template_for
from mathrl.errors import UserError, first_line
from mathrl.memory.shapes import why_not_packed
from mathrl.policy.attention import IMPLEMENTATION
from mathrl.policy.lora_targets import check_targets
from mathrl.types import Adapter, derive_seed

ADAPTER = "default"
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES = 1 << 30
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


def resolve_device(run: RunConfig) -> torch.device:
    """The device of ``run.device``.

    Raises:
        UserError: cuda was asked for and there is none.
    """
    if run.device == "cuda" and not torch.cuda.is_available():
        raise UserError("run.device is cuda, but torch sees no CUDA device; use --run.device cpu or auto")
    if run.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(run.device)


def resolve_dtype(model: ModelConfig, device: torch.device) -> torch.dtype:
    """The compute type of ``model.dtype``; auto is bfloat16 on CUDA and float32 elsewhere."""
    if model.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if model.dtype == "bfloat16" else torch.float32


def keep_freed_memory() -> None:
    """Let glibc keep what tensors free instead of returning it: every step asks for the same again.

    Memory that comes back from the system is cleared page by page. Elsewhere than on glibc nothing happens.
    """
    with suppress(OSError, AttributeError):  # no such library or function
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(parameter, _KEPT_BYTES)


def load_tokenizer(path: str, *, trusted: bool = False) -> Any:
    """The tokenizer of a folder or hub name, with a pad and an end token.

    Args:
        trusted: run code that comes with it (``model.trust_remote_code``).

    Raises:
        UserError: there is none, it needs code of its own, or has no vocabulary or no end-of-sequence token.
    """
    folder = Path(local_model(path))
    if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
        # transformers would make an empty tokenizer of the architecture's usual class
        raise UserError(
            f"no tokenizer in {path!r}: none of {', '.join(TOKENIZER_FILES)}; save one beside the model"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder if folder.is_dir() else path, trust_remote_code=trusted
        )
    except Exception as error:
        _refuse_code(path, error)
        raise UserError(f"no tokenizer could be loaded from {path!r} ({first_line(error)})") from error
    if not tokenizer.encode("1", add_special_tokens=False):  # made of tokenizer_config.json alone
        raise UserError(
            f"the tokenizer of {path!r} has no token for 1, so its vocabulary is missing (tokenizer.json, "
            "tokenizer.model or vocab.json): save the tokenizer beside the model again"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {path!r} has no eos_token, so a completion could never end; set one"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of transformers inside: a local folder is read before a bar is."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def context_length(path: str, *, trusted: bool = False) -> int:
    """Positions that the causal LM at a folder or hub name reads; 2³¹ where its configuration does not say.

    Raises:
        UserError: no model there.
    """
    return getattr(_load_config(path, trusted), "max_position_embeddings", None) or 2**31


def context_of(model: ModelConfig) -> int:
    """Positions of the recipe's model, there already or built from scratch. Raises as ``context_length``."""
    if not model.path:
        return model.context_length
    return context_length(model.path, trusted=model.trust_remote_code)


def load_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's weights by their names; no weights are read. Raises as ``context_length``."""
    return {name: tuple(weight.shape) for name, weight in empty_model(model).named_parameters()}


def empty_model(model: ModelConfig) -> Any:
    """The recipe's model without numbers (on torch's device "meta"). Raises as ``context_length``.

    Of one built from nothing the layers are like that, if not as many.
    """
    try:
        if model.path:
            config = _load_config(model.path, model.trust_remote_code)
        else:
            config = AutoConfig.for_model("qwen2", num_hidden_layers=1)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    except UserError:
        raise
    except Exception as error:
        raise _no_model(model.path, error) from error


def _load_config(path: str, trusted: bool) -> Any:
    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise UserError(f"model.path {path!r} is no folder")
    local = local_model(path)
    try:
        return AutoConfig.from_pretrained(local, trust_remote_code=trusted)
    except Exception as error:
        raise _no_model(path, error) from error


def _no_model(path: str, error: Exception) -> UserError:
    _refuse_code(path, error)
    return UserError(f"no causal LM could be loaded from model.path {path!r} ({first_line(error)})")


def _refuse_code(path: str, error: Exception) -> None:
    """Say so where a model was not loaded for the code that it brings."""
    if "trust_remote_code" in str(error):
        raise UserError(
            f"the model at {path!r} brings Python code of its own, which is run only with "
            "--model.trust_remote_code: read that code first"
        ) from error


def load_base(path: str, device: torch.device, dtype: torch.dtype, *, trusted: bool = False) -> Any:
    """A frozen causal LM in evaluation mode.

    Raises:
        UserError: nothing there that transformers can load as a causal LM.
    """
    if not path:
        raise UserError("model.path is empty: name a model folder, or build one first with `mathrl sft`")
    implementation = "sdpa" if why_not_packed(_load_config(path, trusted)) else IMPLEMENTATION
    model = _load_model(path, trusted=trusted, dtype=dtype, attn_implementation=implementation)
    return model.to(device).requires_grad_(False).eval()


def load_with_head(path: str, device: torch.device, dtype: torch.dtype, *, trusted: bool = False) -> Any:
    """A frozen causal LM as a sequence classifier of one label, with a new head ``score`` of zeros.

    Raises:
        UserError: nothing there that transformers can load as one, or one that does not read the last token.
    """
    implementation = "sdpa" if why_not_packed(_load_config(path, trusted)) else IMPLEMENTATION
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # that the head is new is what is wanted
    try:
        model = _load_model(
            path,
            AutoModelForSequenceClassification,
            new=("score.weight",),
            trusted=trusted,
            num_labels=1,
            dtype=dtype,
            attn_implementation=implementation,
        )
    finally:
        transformers_logging.set_verbosity(level)
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise UserError(
            f"the base {path!r} is a {model.config.model_type}, whose classifier does not read the last "
            "token: take a causal language model"
        )
    torch.nn.init.zeros_(model.score.weight)
    return model.to(device).requires_grad_(False).eval()


def load_whole(path: str, *, trusted: bool = False, dtype: torch.dtype | None = None) -> Any:
    """A causal LM on the CPU, in the type of its files where none is given.

    Raises:
        UserError: nothing there that transformers can load as a causal LM.
    """
    return _load_model(path, trusted=trusted, dtype=dtype or "auto")


def _load_model(
    path: str,
    kind: Any = AutoModelForCausalLM,
    *,
    new: tuple[str, ...] = (),
    trusted: bool = False,
    **how: Any,
) -> Any:
    """The model; all of its weights but those named ``new`` must be in its files."""
    local = local_model(path)
    try:
        with without_bars():
            model, found = kind.from_pretrained(
                local, output_loading_info=True, trust_remote_code=trusted, **how
            )
    except Exception as error:
        raise _no_model(path, error) from error
    if missing := sorted(set(found["missing_keys"]) - set(new)):
        raise UserError(  # transformers would draw them at random
            f"the model at {path!r} has no weights for {missing[0]} ({len(missing)} are missing in all): "
            "is it whole, and a causal LM?"
        )
    return model


def add_adapter(base: Any, lora: LoraSection, seed: int, *, head: str = "") -> PeftModel:
    """The base with a new LoRA adapter: masters in float32, B zero, A from ``seed`` alone.

    ``head``: name of a classifier's head, which trains whole beside the adapter and is saved with it.

    Raises:
        UserError: ``lora.targets`` names no linear layer of the model, or names its head or embedding.
    """
    names = check_targets(base, lora, head=head)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules="all-linear" if names == ["all-linear"] else names,
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        modules_to_save=[head] if head else None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "lora"))
        try:
            model = get_peft_model(base, config, adapter_name=ADAPTER)
        except ValueError as error:
            raise UserError(
                f"lora.targets {lora.targets!r}: no adapter can be put there ({first_line(error)})"
            ) from error
    return model.eval()


def adapter_of(model: PeftModel) -> Adapter:
    """A copy of the model's adapter, in peft's format; tensors where the model's are."""
    tensors = get_peft_model_state_dict(model, adapter_name=ADAPTER)
    settings = model.peft_config[ADAPTER].to_dict()
    return Adapter(settings, {name: tensor.detach().clone() for name, tensor in tensors.items()})


def load_policy_parts(path: str, config: Config) -> tuple[PeftModel, Any]:
    """(base with adapter, tokenizer) of a recipe.

    Raises:
        UserError: as the loaders above; or the tokenizer knows more tokens than the model has embeddings.
    """
    device = resolve_device(config.run)
    if device.type == "cpu":
        keep_freed_memory()
    trusted = config.model.trust_remote_code
    base = load_base(path, device, resolve_dtype(config.model, device), trusted=trusted)
    tokenizer = load_tokenizer(path, trusted=trusted)
    rows = base.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer of {path!r} has {len(tokenizer)} tokens but the model embeds {rows}: no pair"
        )
    add_stop_tokens(base, tokenizer, config.model.stop_tokens)
    add_turn_end(base, tokenizer, config.model)
    return add_adapter(base, config.lora, config.run.seed), tokenizer


def add_turn_end(base: Any, tokenizer: Any, model: ModelConfig) -> None:
    """Let the token that ends a turn in the model's chat, where it is not EOS, end a completion."""
    end = template_for(model, tokenizer, extract="none").end_id
    if end != tokenizer.eos_token_id:
        add_stop_tokens(base, tokenizer, [tokenizer.eos_token_id, end])


def add_stop_tokens(base: Any, tokenizer: Any, tokens: Sequence[int | str]) -> None:
    """Let these tokens, too, end a completion: every engine reads the model's generation settings.

    Raises:
        UserError: the tokenizer has no such token.
    """
    if not tokens:
        return
    ids = stop_ids(tokenizer, tokens)
    own = base.generation_config.eos_token_id
    own = list(own) if isinstance(own, (list, tuple)) else [own]
    base.generation_config.eos_token_id = sorted({*own, *ids} - {None})


def stop_ids(tokenizer: Any, tokens: Sequence[int | str]) -> list[int]:
    """Ids of tokens that end a completion. Raises UserError: the tokenizer has no such token."""
    ids = []
    for token in tokens:
        index = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else token
        unknown = isinstance(token, str) and index == tokenizer.unk_token_id and token != tokenizer.unk_token
        if index is None or unknown or not 0 <= index < len(tokenizer):
            raise UserError(f"model.stop_tokens: the tokenizer has no token {token!r}")
        ids.append(index)
    return ids
