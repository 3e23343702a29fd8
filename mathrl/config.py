"""Every knob once: its type, unit, range and reason.

Recipes (mathrl/recipes/*.toml) and ``--section.key value`` set these fields; nothing else does. A value out
of range is refused here, before a model is loaded.
"""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    """A table of the recipe. Unknown keys are errors; values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class RunConfig(Section):
    name: str = Field("", description="folder name under output_dir; empty: the recipe's name")
    output_dir: str = Field("runs", description="where run folders are made")
    seed: int = Field(0, ge=0, description="every random choice of the run derives from it")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    num_threads: int = Field(0, ge=0, description="CPU threads for torch; 0: torch's own choice")


class ModelConfig(Section):
    path: str = Field(
        "", description="local folder or hub name of a causal LM; empty: a small one is built from nothing"
    )
    adapter: str = Field(
        "",
        description="LoRA adapter to start from, a folder or hub name; merged into model.path, which then is "
        "where training starts and what the KL is measured from",
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that a model brings along; false: such a model is refused"
    )
    from_scratch: bool = Field(
        True, description="without model.path a small model is built from nothing; false: that is refused"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 on cuda, else float32"
    )
    prompt: Literal["auto", "plain", "chat"] = Field(
        "auto", description="prompt template; auto: chat where the tokenizer has a chat template, else plain"
    )
    system_prompt: str = Field(
        "", description="system message of the chat template; a problem's own takes its place; empty: none"
    )
    instruction: str = Field(
        "",
        description="how a problem is asked, with {question} and, apart from it, {options}; empty: asks for "
        "steps and the form of answer that is read",
    )
    chat_template_kwargs: dict[str, bool | int | float | str] = Field(
        {}, description="given to the chat template, such as enable_thinking = false"
    )
    stop_tokens: tuple[int | str, ...] = Field(
        (), description="ids or texts of tokens that end a completion besides the model's own"
    )
    hidden_size: int = Field(128, ge=16, description="width of a model built from scratch")
    num_layers: int = Field(3, ge=1, description="layers of a model built from scratch")
    num_heads: int = Field(4, ge=1, description="attention heads of a model built from scratch")
    num_kv_heads: int = Field(4, ge=1, description="key/value heads of a model built from scratch")
    intermediate_size: int = Field(384, ge=16, description="MLP width of a model built from scratch")
    vocab_size: int = Field(1024, ge=300, description="most tokens of a tokenizer built from scratch (BPE)")
    context_length: int = Field(512, ge=32, description="positions of a model built from scratch, tokens")

    @field_validator("instruction")
    @classmethod
    def _asks(cls, text: str) -> str:
        if text and text.count("{question}") != 1:
            raise ValueError("the text must have {question} once, where the question is to stand")
        for name in re.findall(r"(?<![\\\w]){(\w+)}", text):
            if name not in (known := ("question", "options")) and (
                near := difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.8)
            ):
                raise ValueError(f"{{{name}}} stands for nothing: write {{{near[0]}}}")
        return text

    @field_validator("chat_template_kwargs")
    @classmethod
    def _of_the_template(cls, given: dict[str, Any]) -> dict[str, Any]:
        ours = {"messages", "conversation", "tokenize", "add_generation_prompt", "continue_final_message"}
        if ours & given.keys():
            raise ValueError(f"{', '.join(sorted(ours & given.keys()))} is set by mathrl: leave it out")
        return given

    @field_validator("stop_tokens", mode="before")
    @classmethod
    def _stop_tokens(cls, given: Any) -> Any:
        """``151643,<|eot_id|>``, as the command line says it, as a list."""
        if not isinstance(given, str):
            return given
        parts = [part.strip() for part in given.split(",") if part.strip()]
        return [int(part) if part.isdecimal() else part for part in parts]

    @model_validator(mode="after")
    def _heads(self) -> ModelConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}"
            )
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}"
            )
        return self


class LoraSection(Section):
    rank: int = Field(
        16, ge=1, le=256, description="rank r; above 64 collapse is reported, 32 matches full tuning"
    )
    alpha: float = Field(32.0, gt=0, description="the adapter's output is scaled by alpha / rank")
    dropout: float = Field(0.0, ge=0.0, lt=1.0, description="dropout before A; 0 keeps old logprobs exact")
    targets: str = Field(
        "all-linear", description="peft target_modules: all-linear, or names joined by commas"
    )


class HistoryConfig(Section):
    """``[data.history]``: problems that taught nothing lately are asked less (mathrl/data/history.py)."""

    enabled: bool = Field(False, description="pass over some problems by how they went in this run")
    solved_rate: float = Field(
        0.9, gt=0.0, le=1.0, description="share of right answers from which a problem counts as solved"
    )
    skip_solved: float = Field(
        0.75, ge=0.0, le=0.95, description="probability that a visit of a solved problem is passed over"
    )
    skip_unsolved: float = Field(
        0.5, ge=0.0, le=0.95, description="the same of a problem with no right answer among its newest tries"
    )
    window: int = Field(32, ge=1, description="newest tries (completions) of a problem that count")
    min_tries: int = Field(
        16, ge=1, description="tries before a problem is passed over at all, or window where that is fewer"
    )


class MixConfig(Section):
    """A ``[[data.mix]]`` table: one of several data sets; what it leaves out is as ``[data]`` says."""

    path: str = Field("", description="local file")
    source: str = Field("", description="a data set row or a hub name; with a path: whose fields it has")
    weight: float = Field(1.0, gt=0.0, description="its share of a step's problems, beside the others'")
    name: str = Field("", description="in counts and metrics; empty: the file's or set's own")
    config: str = Field("", description="as data.config")
    split: str = Field("", description="as data.split")
    question_field: str = Field("", description="as data.question_field")
    answer_field: str = Field("", description="as data.answer_field")
    solution_field: str = Field("", description="as data.solution_field")
    options_field: str = Field("", description="as data.options_field")
    answer_type: str = Field("", description="as data.answer_type")
    where: str = Field("", description="as data.where")

    @model_validator(mode="after")
    def _origin(self) -> MixConfig:
        if not self.path and not self.source:
            raise ValueError("a [[data.mix]] table needs path or source")
        return self


class DataConfig(Section):
    source: str = Field(
        "wordproblems",
        description="a known data set (mathrl data lists them) or a hub name; empty: none but what is named",
    )
    path: str = Field("", description="local jsonl/json/parquet/csv instead of the hub")
    config: str = Field("", description="configuration on the hub; empty: the row's own")
    split: str = Field("", description="split to train on; empty: the row's own")
    question_field: str = Field(
        "", description="field of the question, reward.question a field of a field; empty: the row's own"
    )
    answer_field: str = Field("", description="field of the reference answer; empty: the row's own")
    solution_field: str = Field("", description="field of the worked solution; empty: the row's own")
    options_field: str = Field("", description="field of the option texts; empty: the row's own")
    answer_type: str = Field("", description="verifier name; empty: the row's own")
    answer_type_field: str = Field(
        "", description="field of each row's own verifier name; empty: answer_type is that of all rows"
    )
    extract: str = Field("", description="extraction rule (gsm8k, boxed, …); empty: the row's own")
    where: str = Field("", description="keep rows whose field has this value, as field=value; empty: all")
    max_problems: int = Field(0, ge=0, description="use at most this many problems; 0: all")
    eval_path: str = Field(
        "", description="held-out problems as a local file; empty: the row's held-out split"
    )
    eval_split: str = Field("", description="held-out split; empty: the row's own")
    eval_fraction: float = Field(
        0.1, gt=0.0, lt=1.0, description="share held out where there is no held-out split"
    )
    skip_long_prompts: bool = Field(
        False,
        description="leave problems with too long a prompt out, and count them; else: refused",
    )
    shots: int = Field(
        0, ge=0, le=32, description="worked examples before each question, for base models (plain prompts)"
    )
    shots_path: str = Field(
        "", description="where they come from; empty: training problems with a solution, then not asked"
    )
    sft_fraction: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the training problems kept for SFT alone; 0: none is"
    )
    mix: tuple[MixConfig, ...] = Field(
        (), description="several sets, drawn from by weight: [[data.mix]] tables, or FILE=weight,NAME=weight"
    )
    num_train_problems: int = Field(4000, ge=1, description="generated problems to train on (wordproblems)")
    min_steps: int = Field(1, ge=1, le=3, description="fewest steps of a generated problem (GRPO)")
    max_steps: int = Field(3, ge=1, le=3, description="most steps of a generated problem (GRPO)")
    max_operand: int = Field(10, ge=2, le=999, description="largest operand of a generated problem")
    history: HistoryConfig = HistoryConfig()

    @field_validator("mix", mode="before")
    @classmethod
    def _mix(cls, given: Any) -> Any:
        """``FILE=weight,NAME=weight``, as the command line says it, as a list of tables."""
        if not isinstance(given, str):
            return given
        tables: list[dict[str, Any]] = []
        for part in filter(None, map(str.strip, given.split(","))):
            name, sign, weight = part.rpartition("=")
            where = name if sign else part
            kind = "path" if where.endswith((".jsonl", ".json", ".parquet", ".csv")) else "source"
            tables.append({kind: where} | ({"weight": weight} if sign else {}))
        return tables

    @model_validator(mode="after")
    def _one_origin(self) -> DataConfig:
        if self.mix and self.path:
            raise ValueError("data.path and data.mix exclude each other: make the file one of the mix")
        return self

    @model_validator(mode="after")
    def _steps(self) -> DataConfig:
        if self.min_steps > self.max_steps:
            raise ValueError(f"min_steps {self.min_steps} must be <= max_steps {self.max_steps}")
        return self


class SftConfig(Section):
    skip: bool = Field(False, description="the model at model.path is the reference already")
    path: str = Field(
        "", description="worked solutions as a local file; empty: the data set's own training split"
    )
    num_problems: int = Field(20000, ge=1, description="generated problems with solutions (wordproblems)")
    min_steps: int = Field(1, ge=1, le=3, description="fewest steps of a generated problem (SFT)")
    max_steps: int = Field(2, ge=1, le=3, description="most steps of a generated problem (SFT)")
    longer_fraction: Fraction = Field(
        0.0, description="share of the generated problems that have one step more than max_steps"
    )
    lora: bool = Field(
        False, description="train an adapter as [lora] says and merge it into the reference; else all weights"
    )
    max_train_steps: int = Field(
        1500,
        ge=1,
        description="optimiser steps at most, direct_answer_steps come on top; the schedule's length",
    )
    epochs: float = Field(
        0.0,
        ge=0.0,
        description="passes over the demonstrations, within max_train_steps; 0: none",
    )
    keep_best: bool = Field(
        False, description="end with the weights of the lowest held-out loss, the model's own among them"
    )
    max_seconds: float = Field(
        0.0, ge=0.0, description="stop after this many seconds; 0: no limit; breaks bit-equality"
    )
    target_accuracy: Fraction = Field(
        0.0, description="stop when held-out greedy accuracy reaches it; 0: never"
    )
    eval_every_steps: int = Field(100, ge=1, description="held-out loss and accuracy every so many steps")
    batch_tokens: int = Field(2048, ge=64, description="tokens of a packed batch")
    learning_rate: float = Field(3e-3, gt=0, description="peak, after warm-up")
    warmup_fraction: Fraction = Field(0.05, description="share of the steps spent warming up, then cosine")
    compile: bool = Field(False, description="torch.compile the layers (CUDA)")
    weight_decay: float = Field(0.01, ge=0, description="AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradient clipping")
    prompt_loss_weight: Fraction = Field(
        0.0, description="weight of prompt tokens in the loss; 0: completions only"
    )
    drill_fraction: Fraction = Field(
        0.0, description="share of bare arithmetic drills among generated problems"
    )
    direct_answer_fraction: Fraction = Field(
        0.0,
        description="share of examples whose solution is only the answer: plants the habit GRPO must unlearn",
    )
    direct_answer_steps: int = Field(
        0, ge=0, description="last steps, after the target, that have such examples; 0: all steps have them"
    )

    @property
    def num_steps(self) -> int:
        """Optimiser steps at most, those with direct answers included."""
        return self.max_train_steps + self.direct_answer_steps

    @model_validator(mode="after")
    def _steps(self) -> SftConfig:
        if self.min_steps > self.max_steps:
            raise ValueError(f"sft.min_steps {self.min_steps} must be <= sft.max_steps {self.max_steps}")
        if self.longer_fraction and self.max_steps == 3:
            raise ValueError("sft.longer_fraction needs sft.max_steps < 3: problems have three steps at most")
        return self


class RolloutConfig(Section):
    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="auto: vllm where CUDA and vllm are"
    )
    problems_per_step: int = Field(16, ge=1, description="P: problems a step")
    group_size: int = Field(8, ge=1, description="G: completions a problem; P x G = completions a step")
    max_prompt_tokens: int = Field(
        256, ge=0, description="longer prompts are refused; 0: the longest of the problems sets it"
    )
    max_completion_tokens: int = Field(
        96, ge=0, description="a completion ends here at the latest; 0: 1,024, or what the context leaves"
    )
    temperature: float = Field(
        1.0, gt=0.0, le=10.0, description="sampling temperature, applied by the trainer too"
    )
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="nucleus sampling; 1: off")
    top_k: int = Field(0, ge=0, description="sample among the k likeliest tokens; 0: off")
    gpu_memory_fraction: float = Field(
        0.0, ge=0.0, lt=1.0, description="vllm's share; 0: computed from the shapes"
    )
    max_sync_gap: float = Field(
        0.25, gt=0, description="nats: largest engine/trainer gap on sentinel prompts after a sync"
    )
    merge_adapter: bool = Field(
        False, description="vllm: serve merged weights instead of the adapter (loses small deltas)"
    )
    max_sequences: int = Field(
        0,
        ge=0,
        description="vllm: completions of a rank decoded at once; with fewer than a step's, one wave trains "
        "while the next decodes, in smaller batches; 0: all",
    )
    num_replicas: int = Field(
        0,
        ge=0,
        le=8,
        description="vllm: cores side by side on the device; small models wait for one core's Python; 0: by "
        "the model's size",
    )
    compile_engine: bool = Field(
        True, description="vllm: compile the layers (CUDA): a slower start, faster steps of large models"
    )

    @field_validator("max_prompt_tokens")
    @classmethod
    def _prompt(cls, tokens: int) -> int:
        if 0 < tokens < 8:
            raise ValueError(f"no prompt fits {tokens} tokens: take 8 or more, or 0 for the longest there is")
        return tokens


class AlgorithmConfig(Section):
    """Knobs left None take the value of the algorithm's row (mathrl/algorithms/table.py)."""

    name: str = Field("grpo", description="grpo, dapo, ppo, trpo …: a row of the table of algorithms")
    advantage: str | None = Field(None, description="group_norm, group_centre, leave_one_out, gae, …")
    ratio: Literal["token", "sequence"] | None = Field(None, description="level of the importance ratio")
    surrogate: Literal["clip", "weighted_logprob", "none"] | None = Field(
        None, description="shape of the surrogate"
    )
    clip_low: float | None = Field(None, gt=0.0, le=1.0, description="ratio is clipped below 1 - clip_low")
    clip_high: float | None = Field(None, gt=0.0, description="ratio is clipped above 1 + clip_high")
    aggregation: Literal["sequence_mean", "token_mean", "constant"] | None = Field(
        None, description="mean over own tokens then completions; over all tokens; sum over a constant length"
    )
    kl_coef: float | None = Field(
        None, ge=0.0, description="weight of KL(policy || reference) a token; 0 skips the pass"
    )
    kl_estimator: Literal["k1", "k2", "k3"] | None = Field(None, description="estimator of the KL")
    kl_place: Literal["loss", "reward"] | None = Field(
        None, description="KL as a loss term or as a penalty in the reward"
    )
    kl_knee: float = Field(
        10.0, gt=0.0, description="log-ratio beyond which k3 goes on linearly; keeps its gradient"
    )
    kl_target: float = Field(
        0.0, ge=0.0, description="nats a token: adapt kl_coef to hold it; 0: fixed coefficient"
    )
    select: Literal["all", "rewards_differ"] | None = Field(None, description="groups that train")
    max_refills: int = Field(3, ge=0, le=20, description="extra rollouts a step to refill dropped groups")
    overlong_buffer: int | None = Field(
        None, ge=0, description="tokens before the limit where the soft penalty begins"
    )
    whiten_advantages: bool | None = Field(
        None, description="advantages to mean 0 and standard deviation 1 over the step's tokens"
    )
    correction: bool | None = Field(
        None, description="importance correction sampler -> trainer; None: unless the engine is exact"
    )
    correction_cap: float = Field(2.0, ge=1.0, description="truncation of the importance weights")
    gamma: float = Field(1.0, gt=0.0, le=1.0, description="discount a token (GAE)")
    gae_lambda: float = Field(1.0, ge=0.0, le=1.0, description="GAE lambda")
    value_clip: float = Field(0.2, gt=0.0, description="clip of the value update (PPO)")
    value_rank: int = Field(8, ge=1, le=256, description="LoRA rank of the value model")
    value_learning_rate: float = Field(1e-3, gt=0.0, description="learning rate of the value model")
    value_epochs: int = Field(1, ge=1, description="passes of the value model over a rollout")
    value_warmup_steps: int = Field(0, ge=0, description="steps that train the value model alone")
    trust_region_kl: float = Field(0.01, gt=0.0, description="delta: nats a token a TRPO step may move")
    cg_iterations: int = Field(10, ge=1, description="conjugate gradient iterations")
    cg_damping: float = Field(0.1, ge=0.0, description="added to the Fisher product")
    line_search_steps: int = Field(10, ge=1, description="shrinkages (x 0.8) before the old weights are kept")
    fisher_fraction: float = Field(
        1.0, gt=0.0, le=1.0, description="share of the completions in Fisher products"
    )


class RewardFunctionConfig(Section):
    """A ``[[reward.functions]]`` table: a Python function beside the verifier (rewards/functions.py)."""

    path: str = Field(
        pattern=r"^[\w.]+:\w+$", description="module:function, imported from here or PYTHONPATH"
    )
    weight: float = Field(1.0, description="of its value in the reward")
    name: str = Field("", description="of its metric reward/<name>; empty: the function's own")
    style: Literal["auto", "completion", "group", "trl", "trl_chat"] = Field(
        "auto", description="how it is called; auto: read off the names of its parameters"
    )


class RewardConfig(Section):
    correct: float = Field(1.0, description="reward of a correct answer")
    wrong: float = Field(0.0, description="reward of any other outcome that has none of its own below")
    unparsed: float | None = Field(None, description="of an answer that cannot be read; unset: as wrong")
    no_answer: float | None = Field(None, description="of a completion without an answer; unset: as wrong")
    truncated: float | None = Field(
        None, description="of a completion cut at the token limit that is not correct; unset: as its outcome"
    )
    format: float = Field(0.0, description="added where an answer could be read, right or wrong")
    length: float = Field(0.0, description="added for every token of a completion (negative: prefer short)")
    mask_truncated: bool = Field(
        False, description="completions cut at the token limit give no gradient; their rewards still count"
    )
    functions: tuple[RewardFunctionConfig, ...] = Field(
        (), description="Python functions beside the verifier: module:function=weight, joined by commas"
    )
    function_timeout_s: float = Field(
        30.0, gt=0.0, description="wall clock one call of a reward function may take; more stops the run"
    )
    model_path: str = Field("", description="sequence-classification checkpoint used as a reward model")
    model_weight: float = Field(0.0, description="weight of the reward model")
    num_workers: int = Field(2, ge=1, le=64, description="verifier processes")
    timeout_s: float = Field(5.0, gt=0.0, description="wall clock one verdict may take")
    memory_mb: int = Field(1024, ge=256, description="memory one verifier process may take")

    @model_validator(mode="after")
    def _model(self) -> RewardConfig:
        if self.model_path and "model_weight" not in self.model_fields_set:
            raise ValueError(
                "reward.model_path names a reward model, and nothing says what it counts: set "
                "reward.model_weight, for example to 0.2 (0 leaves it out)"
            )
        if self.model_weight and not self.model_path:
            raise ValueError("reward.model_weight is the weight of a model: name it with reward.model_path")
        return self

    @property
    def learned(self) -> str:
        """The reward model that counts; empty: none is named, or it weighs nothing."""
        return self.model_path if self.model_weight else ""

    @field_validator("functions", mode="before")
    @classmethod
    def _functions(cls, given: Any) -> Any:
        """``module:function=weight,…``, as the command line says it, as a list of tables."""
        if not isinstance(given, str):
            return given
        tables: list[dict[str, Any]] = []
        for part in filter(None, map(str.strip, given.split(","))):
            path, sign, weight = part.partition("=")
            tables.append({"path": path.strip()} | ({"weight": weight.strip()} if sign else {}))
        return tables


class RewardModelConfig(Section):
    """Training of a reward model (``mathrl reward-model``); its adapter is the ``lora`` section's."""

    base: str = Field(
        "", description="model or run it starts from; empty: the recipe's run's reference, or model.path"
    )
    pairs: str = Field("", description="ranked pairs, jsonl or parquet: question, chosen, rejected")
    eval_pairs: str = Field("", description="held-out pairs as a file; empty: a share of the questions")
    eval_fraction: float = Field(
        0.1, gt=0.0, lt=1.0, description="share of the questions held out where there is no eval_pairs"
    )
    margins: bool = Field(
        False, description="a pair's field margin is asked for: the chosen score must be larger by it"
    )
    center_coef: float = Field(
        0.01, ge=0.0, description="weight of (sum of a pair's scores)^2, which holds scores around 0; 0: off"
    )
    num_epochs: int = Field(2, ge=1, description="passes over the pairs")
    batch_pairs: int = Field(32, ge=1, description="pairs of an optimiser step")
    learning_rate: float = Field(1e-3, gt=0.0, description="AdamW, peak, after warm-up")
    warmup_fraction: Fraction = Field(0.05, description="share of the steps spent warming up, then cosine")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW")
    max_grad_norm: float = Field(1.0, gt=0.0, description="gradient clipping")
    eval_every_steps: int = Field(
        25, ge=1, description="held-out loss every so many steps; the best checkpoint is chosen by it"
    )


class UpdateConfig(Section):
    learning_rate: float = Field(2e-3, gt=0.0, description="AdamW, after warm-up")
    warmup_steps: int = Field(0, ge=0, description="linear warm-up")
    schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after warm-up")
    weight_decay: float = Field(0.0, ge=0.0, description="AdamW")
    beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW")
    beta2: float = Field(0.999, ge=0.0, lt=1.0, description="AdamW")
    max_grad_norm: float = Field(1.0, gt=0.0, description="gradient clipping")
    num_epochs: int = Field(1, ge=1, description="passes over a rollout")
    num_minibatches: int = Field(1, ge=1, description="optimiser steps a pass")
    micro_batch_tokens: int = Field(
        8192,
        ge=0,
        description="tokens (prompt + completion) of a forward/backward; 0: what the memory holds",
    )
    fused_lora: bool = Field(True, description="own LoRA linears instead of peft's eager ones")
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="torch.compile the layers (CUDA): true, false, or auto: where the run gains clearly more "
        "than the minute and a half that it takes",
    )
    share_prompts: bool = Field(True, description="compute a group's prompt once in the training forward")
    gradient_checkpointing: bool = Field(
        False, description="recompute activations: less memory, a third more work"
    )

    @field_validator("compile", mode="before")
    @classmethod
    def _compile(cls, given: Any) -> Any:
        if not isinstance(given, bool) and given != "auto":
            raise ValueError(f"must be true, false or auto, not {given!r}")
        return given

    @field_validator("micro_batch_tokens")
    @classmethod
    def _micro_batch(cls, tokens: int) -> int:
        if 0 < tokens < 16:
            raise ValueError(f"a micro-batch has 16 tokens or more, got {tokens}; 0: what the memory holds")
        return tokens


class TrainConfig(Section):
    num_steps: int = Field(40, ge=0, description="rollout + update steps")
    max_seconds: float = Field(0.0, ge=0.0, description="stop after this many seconds of steps; 0: no limit")
    overlap: Literal["auto", "on", "off"] = Field(
        "auto",
        description="train groups while others of the step are sampled; auto: on a GPU, where it is faster",
    )


class EvaluateConfig(Section):
    num_problems: int = Field(500, ge=1, description="held-out problems before and after")
    every_steps: int = Field(10, ge=0, description="held-out accuracy during training; 0: never")
    every_num_problems: int = Field(100, ge=1, description="problems of the evaluation during training")
    num_samples: int = Field(8, ge=0, description="k of mean@k; 0: greedy only")
    temperature: float = Field(1.0, gt=0.0, description="of the k samples")
    max_completion_tokens: int = Field(0, ge=0, description="0: as in rollout")
    early_stop_patience: int = Field(0, ge=0, description="evaluations without a better lower bound; 0: off")


class CheckpointConfig(Section):
    every_steps: int = Field(10, ge=0, description="0: only at the end and on interruption")
    keep_last: int = Field(2, ge=1, description="older ones are deleted; the best is kept besides")


class TrackingConfig(Section):
    tensorboard: bool = Field(True, description="write TensorBoard events beside metrics.jsonl")
    wandb: bool = Field(False, description="log to Weights & Biases (pip install mathrl[wandb])")
    trackio: bool = Field(False, description="log to trackio (pip install mathrl[trackio])")
    save_batch_steps: int = Field(
        0, ge=0, description="keep the batch of every so many steps for mathrl replay; 0: of none"
    )
    samples_per_step: int = Field(2, ge=0, description="groups written to samples.jsonl each step")
    num_watched: int = Field(
        4, ge=0, description="held-out problems whose completions are kept at every evaluation"
    )


class Config(Section):
    """A whole recipe."""

    recipe: str = Field("custom", description="name of the recipe this came from")
    description: str = Field("", description="one line for the report")
    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraSection = LoraSection()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    update: UpdateConfig = UpdateConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()

    @property
    def makes_reference(self) -> bool:
        """Whether the reference is made by the run: its supervised stage's, or model with adapter."""
        return not self.sft.skip or bool(self.model.adapter)

    @model_validator(mode="after")
    def _across(self) -> Config:
        if self.model.adapter and not self.model.path:
            raise ValueError("model.adapter needs model.path: the model that the adapter was made for")
        if self.sft.skip and not self.model.path:
            raise ValueError("sft.skip needs model.path: without SFT there is no reference to start from")
        if self.update.num_minibatches > self.rollout.problems_per_step * self.rollout.group_size:
            raise ValueError(
                f"update.num_minibatches {self.update.num_minibatches} is more than the "
                f"{self.rollout.problems_per_step * self.rollout.group_size} completions a step"
            )
        return self
