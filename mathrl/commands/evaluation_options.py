"""The options of ``mathrl eval``, checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from mathrl.errors import UserError

_FIELDS = (
    "model.", "update.", "run.device", "rollout.engine", "rollout.gpu_memory_fraction",
    "rollout.merge_adapter", "rollout.max_sequences", "rollout.num_replicas", "rollout.compile_engine",
    "reward.num_workers", "reward.timeout_s", "reward.memory_mb",
)  # fmt: skip
_OWN_OPTIONS = {
    "rollout.temperature": "--temperature",
    "rollout.top_p": "--top-p",
    "rollout.max_completion_tokens": "--max-completion-tokens",
    "evaluate.num_samples": "--samples",
    "evaluate.num_problems": "--max-problems",
    "data.shots": "--shots",
    "data.shots_path": "--shots-data",
    "data.path": "--data",
    "data.eval_path": "--data",
    "run.seed": "--seed",
    "run.name": "--out",
    "run.output_dir": "--out",
}


def check_fields(given: Iterable[str]) -> None:
    """Refuse fields of a recipe that evaluation does not read, for what they say would not be so.

    Raises:
        UserError: the field, and where the same is said.
    """
    for name in given:
        if name.startswith(_FIELDS):
            continue
        if name in _OWN_OPTIONS:
            advice = f"say it with {_OWN_OPTIONS[name]}"
        elif name.startswith("data."):
            advice = (
                "the columns and the answer type of a file are told by a table of a TOML file, as "
                "mathrl/evaluation/benchmarks.toml has them: --benchmark FILE.toml with --data NAME=FILE"
            )
        else:
            advice = "it changes nothing in how a model is asked and judged; leave it out"
        raise UserError(f"an evaluation takes no --{name}: {advice}")


def _hidden(text: str) -> Parameter:
    """Help of an option whose default goes without saying."""
    return Parameter(help=text, show_default=False)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What is asked, how, and where results go.

    Raises:
        UserError: a number that no evaluation can have.
    """

    benchmark: Annotated[str, _hidden("names or FILE.toml, joined by commas, see --list")] = ""
    list: Annotated[bool, _hidden("list the benchmarks and end")] = False
    endpoint: Annotated[str, _hidden("URL of a server of the OpenAI API that has the model")] = ""
    model: Annotated[str, _hidden("the name by which --endpoint serves it; default: its only one")] = ""
    tokenizer: Annotated[str, _hidden("of --endpoint's model: prompts are then written here, whole")] = ""
    concurrency: Annotated[int, Parameter(help="requests to --endpoint at once")] = 64
    adapter: Annotated[str, _hidden("folder of a peft adapter on the model")] = ""
    data: Annotated[tuple[str, ...], _hidden("local file instead of the hub: FILE or NAME=FILE")] = ()
    samples: Annotated[int, Parameter(help="samples a problem beside greedy")] = 0
    temperature: Annotated[float, Parameter(help="of the samples")] = 1.0
    top_p: Annotated[float, Parameter(help="of the samples")] = 1.0
    max_completion_tokens: Annotated[int, Parameter(help="0: the benchmark's")] = 0
    max_problems: Annotated[int, Parameter(help="a fixed sample; 0: all")] = 0
    shots: Annotated[int, Parameter(help="worked examples in the prompt")] = 0
    shots_data: Annotated[tuple[str, ...], _hidden("where examples come from: FILE or NAME=FILE")] = ()
    rank_by: Annotated[str, _hidden("reward model that ranks the samples: best-of-k, weighted majority")] = ""
    seed: Annotated[int, Parameter(help="of the samples and the examples")] = 0
    trained_on: Annotated[tuple[str, ...], _hidden("file of training questions, for overlap")] = ()
    against: Annotated[Path | None, _hidden("folder of earlier results to compare with")] = None
    reference: Annotated[bool, _hidden("of a run: its reference, as it was before reinforcement")] = False
    out: Annotated[Path | None, _hidden("folder; default: evaluations/MODEL, or RUN/benchmarks")] = None
    overwrite: Annotated[bool, _hidden("replace what --out holds of another evaluation")] = False

    def __post_init__(self) -> None:
        for option in ("samples", "max_completion_tokens", "max_problems", "shots"):
            if getattr(self, option) < 0:
                raise UserError(f"--{option.replace('_', '-')} must be >= 0, got {getattr(self, option)}")
        if self.concurrency < 1:
            raise UserError(f"--concurrency must be >= 1, got {self.concurrency}")
        if self.endpoint and (self.adapter or self.reference):
            raise UserError("a server takes no adapter and no run: start it with what is to be evaluated")
        if not self.endpoint and (self.model or self.tokenizer):
            option = "--model" if self.model else "--tokenizer"
            raise UserError(f"{option} goes with --endpoint; otherwise name the model alone")
        if self.rank_by and self.samples < 2:
            raise UserError(
                f"--rank-by ranks samples: ask for two or more with --samples, got {self.samples}"
            )
        if not self.temperature > 0:
            raise UserError(
                f"--temperature must be > 0, got {self.temperature}: the greedy completion needs none"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p must lie in (0, 1], got {self.top_p}")

    def words(self) -> Sequence[str]:
        """The options as they are typed."""
        found: list[str] = []
        for field in fields(self):
            value, option = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if value == field.default:
                continue
            values = value if isinstance(value, tuple) else (value,)
            found += [option if each is True else f"{option}={each}" for each in values]
        return found
