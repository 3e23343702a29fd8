"""``mathrl replay BATCH``: a training step once more from its saved batch, and whether it comes out the same.

A saved batch is a folder of safe files: ``batch.safetensors`` (the batch), ``state.safetensors`` (the adapter
and the update's own tensors from before the step), ``config.toml``, ``batch.json`` (everything else) and,
once the step was made, ``metrics.json``. Nothing in it can run code.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mathrl import __version__
from mathrl.algorithms.table import Algorithm, resolve_algorithm
from mathrl.config import Config
from mathrl.errors import UserError
from mathrl.policy.model import Policy
from mathrl.recipes import dump, load_config
from mathrl.run.files import atomic, write_json, write_text
from mathrl.training.annotate import annotate
from mathrl.training.micro_batching import MicroBatches
from mathrl.training.update import Update, make_update
from mathrl.types import Adapter, Batch

EXIT_DIFFERENT = 1
SMALL = 1e-7
"""Differences up to this are no difference: a loss of zero is 1e-9 in float32."""

_ANNOTATIONS = ("old_logprobs", "ref_logprobs", "values", "advantages", "returns")
_Json = dict[str, Any]


def print_replay(batch: Path, reference: Path | None, tolerance: float) -> int:
    """Replay, print, and say by the exit status whether all is equal."""
    console = Console(highlight=False)
    rows = replay(batch, reference)
    table = Table(box=None, pad_edge=False)
    for column in ("", "saved", "now", "difference"):
        table.add_column(column, justify="right" if column else "left")
    different = [row for row in rows if not row.equal(tolerance)]
    for row in rows:
        mark = " ← differs" if row in different else ""
        table.add_row(row.name, _shown(row.saved), _shown(row.now), f"{row.difference:.3g}{mark}")
    console.print(table)
    if not (batch / "metrics.json").is_file():
        console.print("The step that saved this batch was never finished: there are no metrics to compare.")
    if different:
        console.print(f"{len(different)} of {len(rows)} numbers differ by more than {tolerance:g}.")
        return EXIT_DIFFERENT
    console.print(f"All {len(rows)} numbers agree within {tolerance:g}.")
    return 0


class Row(NamedTuple):
    """A number then and now; of a tensor: 0 and its largest difference."""

    name: str
    saved: float | None  # None: the step was never finished
    now: float | None  # None: it did not come about this time
    difference: float  # relative

    def equal(self, tolerance: float) -> bool:
        return self.saved is None or self.difference <= tolerance


# --- saving -------------------------------------------------------------------------------------------------


def save_batch(
    folder: Path, config: Config, policy: Policy, update: Update, batch: Batch, *, step: int, reference: str
) -> Path:
    """Write ``folder``/step-XXXXXXXX, whole or not at all; call it just before the update.

    Args:
        step: 1-based number of the step.
        reference: path or name of the reference model.
    """
    path = folder / f"step-{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {}
    told = {
        "version": __version__,
        "step": step,
        "reference": _relative(reference, path),
        "correct": bool(getattr(getattr(update, "loss", None), "correct", False)),
        "device": str(policy.device),
        "adapter": sorted(policy.adapter().tensors),
        "update": _split(update.state_dict(), "update", state),
    }
    state |= {f"adapter.{name}": tensor for name, tensor in policy.adapter().tensors.items()}
    with atomic(path) as temporary:
        temporary.mkdir()
        save_file(_batch_tensors(batch), temporary / "batch.safetensors")
        save_file({n: _own(t) for n, t in state.items()}, temporary / "state.safetensors")
        as_it_is = config.update.model_copy(
            update={"compile": policy.compiled}
        )  # "auto" was decided for a run
        write_text(temporary / "config.toml", dump(config.model_copy(update={"update": as_it_is})))
        write_json(temporary / "batch.json", told)
    return path


def save_metrics(path: Path, metrics: Mapping[str, float]) -> None:
    """Add what the update measured to a saved batch; values that are not finite become null."""
    write_json(path / "metrics.json", {n: v if math.isfinite(v) else None for n, v in metrics.items()})


# --- replaying ----------------------------------------------------------------------------------------------


def replay(path: Path, reference: Path | None = None) -> list[Row]:
    """What the batch holds, and what its step measured, beside the same computed anew.

    Raises:
        UserError: no saved batch there, damaged, or its reference is gone.
        NonFiniteError: the step's loss or gradient is not finite, as it was.
    """
    told, tensors, state = _read(path)
    config = load_config(path / "config.toml")
    algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
    policy = Policy.from_pretrained(_reference(path, told, reference), config)
    policy.load_adapter(Adapter({}, {name: state[f"adapter.{name}"] for name in told["adapter"]}))
    update = make_update(config, algorithm, policy, engine_exact=not told["correct"])
    update.load_state_dict(_join(told["update"], state))
    batch = _batch(tensors).to(policy.device)
    rows = [
        Row(f"batch {name}", 0.0, gap, gap)
        for name, gap in _annotation_gaps(config, algorithm, policy, update, batch)
    ]
    metrics = update(policy, batch)
    saved_file = path / "metrics.json"
    saved = json.loads(saved_file.read_text(encoding="utf-8")) if saved_file.is_file() else {}
    known = {name: value for name, value in saved.items() if name in metrics or _of_update(name)}
    for name in sorted({**metrics, **known}):
        then, now = known.get(name), metrics.get(name)
        rows.append(Row(name, then, now, _difference(then, now)))
    return rows


def _annotation_gaps(
    config: Config, algorithm: Algorithm, policy: Policy, update: Update, batch: Batch
) -> list[tuple[str, float]]:
    """Largest difference, relative to the largest value, of each thing that was computed for the batch."""
    bare = batch.add(**dict.fromkeys(_ANNOTATIONS), loss_mask=batch.sampled, sampled_mask=None)
    again = annotate(
        policy,
        bare,
        MicroBatches(config.update.micro_batch_tokens),
        old=batch.old_logprobs is not None,
        reference=batch.ref_logprobs is not None,
        values=batch.values is not None,
    )
    again = algorithm.advantages(again, kl_coef=update.kl_coef)
    gaps = []
    for name in _ANNOTATIONS:
        then, now = getattr(batch, name), getattr(again, name)
        if then is not None and then.numel():
            gaps.append((name, float((then - now).abs().max() / then.abs().max().clamp(min=SMALL))))
    return gaps


def _of_update(name: str) -> bool:
    """Whether a metric is one that the update measures (and not the rollout, the clock, the memory)."""
    return name.startswith(("policy/", "value/", "trust_region/"))


def _difference(then: float | None, now: float | None) -> float:
    if then is None:
        return 0.0
    if now is None:
        return math.inf
    gap = abs(then - now)
    if math.isnan(gap):
        return math.inf
    return 0.0 if gap <= SMALL else gap / max(abs(then), abs(now))


def _reference(path: Path, told: _Json, given: Path | None) -> str:
    if given is not None:
        return str(given)
    inside = path / told["reference"]
    if inside.is_dir():
        return str(inside.resolve())
    if told["reference"].startswith("."):
        raise UserError(f"the reference of {path} is no longer at {inside}: say where with --reference")
    return str(told["reference"])


def _relative(reference: str, path: Path) -> str:
    """A folder as seen from the saved batch, so that a run can be moved; a hub name as it is."""
    folder = Path(reference)
    return os.path.relpath(folder.resolve(), path.resolve()) if folder.is_dir() else reference


def _read(path: Path) -> tuple[_Json, dict[str, Tensor], dict[str, Tensor]]:
    file = path / "batch.json"
    if not file.is_file():
        raise UserError(
            f"{path} is no saved batch (no batch.json): train with tracking.save_batch_steps set, and name a "
            "folder RUN/batches/step-…"
        )
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return told, load_file(path / "batch.safetensors"), load_file(path / "state.safetensors")
    except (json.JSONDecodeError, SafetensorError, FileNotFoundError) as error:
        raise UserError(f"the saved batch {path} is damaged ({error})") from None


# --- batches and states as tensors and JSON -----------------------------------------------------------------


def _batch_tensors(batch: Batch) -> dict[str, Tensor]:
    found = {
        "prompts": torch.cat(batch.prompts),
        "prompt_lengths": torch.tensor([len(p) for p in batch.prompts]),
    }
    for field in fields(Batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor) and field.name != "places":  # a saved batch is a whole step
            found[field.name] = value
    return {name: _own(tensor) for name, tensor in found.items()}


def _batch(tensors: Mapping[str, Tensor]) -> Batch:
    rest = dict(tensors)
    prompts = rest.pop("prompts").split(rest.pop("prompt_lengths").tolist())
    return Batch(prompts=tuple(prompts), **rest)  # type: ignore[arg-type]


def _own(tensor: Tensor) -> Tensor:
    """On the CPU, in memory of its own: safetensors refuses tensors that share any."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON, its tensors put into ``tensors`` under dotted names."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"map": [[key, _split(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_split(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]}
    return {"value": value}


def _join(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of ``_split`` (tuples come back as lists)."""
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "map":
        return {key: _join(item, tensors) for key, item in content}
    if kind == "list":
        return [_join(item, tensors) for item in content]
    return content


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"
