"""The reward functions for TRL and verl, called as those trainers call them."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import verifiers
from verifiers.tools import trainers, verl_reward


@pytest.fixture(scope="module")
def reward() -> trainers.TrlReward:
    return verifiers.as_trl_reward(num_workers=1)


def as_trl_calls(
    function: Any, inputs: list[dict[str, Any]], completions: list[Any]
) -> tuple[list[float | None], dict[str, list[Any]], dict[str, float]]:
    """What `GRPOTrainer._calculate_rewards` of TRL 1.16.0 (trl/trainer/grpo_trainer.py, Apache-2.0) passes.

    The columns but prompt, completion and completion_ids as lists, one value a completion, then the trainer's
    state and two functions that log. Returns the rewards and what was logged.
    """
    columns = [key for key in inputs[0] if key not in ("prompt", "completion", "completion_ids")]
    keywords: dict[str, Any] = {key: [example[key] for example in inputs] for key in columns}
    extra: dict[str, list[Any]] = {}
    metrics: dict[str, float] = {}
    keywords |= {
        "trainer_state": SimpleNamespace(global_step=3),
        "log_extra": lambda column, values: extra.setdefault(column, []).extend(values),
        "log_metric": lambda name, value: metrics.update({name: value}),
    }
    ids = [[1, 2] for _ in completions]
    prompts = [example["prompt"] for example in inputs]
    return function(prompts=prompts, completions=completions, completion_ids=ids, **keywords), extra, metrics


def chat(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


ASKED = [{"role": "user", "content": "How many?"}]


def test_trl_texts_and_conversations(reward: trainers.TrlReward) -> None:
    inputs = [{"prompt": "How many?", "solution": r"\frac{1}{2}"}] * 3
    rewards, extra, metrics = as_trl_calls(reward, inputs, [r"\boxed{0.5}", r"\boxed{2}", ""])
    assert rewards == [1.0, 0.0, 0.0]
    assert extra == {"extracted": ["0.5", "2", ""]}
    assert metrics["verify/correct_frac"] == metrics["verify/no_answer_frac"] == pytest.approx(1 / 3)
    inputs = [{"prompt": ASKED, "solution": r"\frac{1}{2}"}] * 4
    called = [{"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "0.5"}]
    parts = [{"role": "assistant", "content": [{"type": "text", "text": r"so \boxed{0.5}"}]}]
    completions = [chat(r"\boxed{0.5}"), chat(r"\boxed{2}"), called + chat(r"\boxed{1/2}"), parts]
    assert as_trl_calls(reward, inputs, completions)[0] == [1.0, 0.0, 1.0, 1.0]


def test_trl_references_of_every_form(reward: trainers.TrlReward) -> None:
    numpy = pytest.importorskip("numpy")
    for reference, text, value in [
        (12, "12", 1.0),
        (12.5, "25/2", 1.0),
        (True, r"\text{Yes}", 1.0),
        (["1/2", "1/3"], "1/3", 1.0),
        (["1/2", "1/3"], "1/2, 1/3", 0.0),
        (numpy.array(["1/2", "1/3"]), "1/3", 1.0),
        (numpy.float64(12.5), "12.5", 1.0),
        ("7y+", "7y", None),  # cannot be read: no reward at all
    ]:
        inputs = [{"prompt": "?", "solution": reference}]
        assert as_trl_calls(reward, inputs, [f"\\boxed{{{text}}}"])[0] == [value], (reference, text)


def test_trl_prompts_tell_whether_a_percentage_is_asked_for(reward: trainers.TrlReward) -> None:
    texts = [r"\boxed{75\%}", r"\boxed{75}", r"\boxed{74\%}"]
    question = "What percentage are roses?"
    conversation = [{"role": "system", "content": "How many?"}, {"role": "user", "content": question}]
    for prompt, completions in ((question, texts), (conversation, [chat(text) for text in texts])):
        inputs = [{"prompt": prompt, "solution": "75"}] * 3
        assert as_trl_calls(reward, inputs, completions)[0] == [1.0, 1.0, 0.0]
    inputs = [{"prompt": ASKED, "solution": "75"}] * 3
    assert as_trl_calls(reward, inputs, [chat(text) for text in texts])[0] == [0.0, 1.0, 0.0]


def test_trl_settings_columns_and_thoughts() -> None:
    inputs = [{"prompt": ASKED, "answer": "B", "options": ["5", "7"]}] * 2
    letters = verifiers.as_trl_reward("answer", answer_type="choice", correct=2.0, wrong=-1.0, num_workers=1)
    assert as_trl_calls(letters, inputs, [chat(r"\boxed{7}"), chat(r"\boxed{5}")])[0] == [2.0, -1.0]
    every = verifiers.as_trl_reward("answer", answer_type="all_of", num_workers=1)
    inputs = [{"prompt": "?", "answer": ["3", "5"]}] * 2
    assert as_trl_calls(every, inputs, [r"\boxed{5, 3}", r"\boxed{5}"])[0] == [1.0, 0.0]
    opened = "User: How many? Assistant: <think>"
    texts = [r"\boxed{5}", r"</think>\boxed{5}"]
    assert as_trl_calls(
        verifiers.as_trl_reward(num_workers=1), [{"prompt": opened, "solution": "5"}] * 2, texts
    )[0] == [0.0, 1.0]
    thinks = verifiers.as_trl_reward(prompt_end="<think>\n", num_workers=1)
    inputs = [{"prompt": ASKED, "solution": "5"}] * 2
    assert as_trl_calls(thinks, inputs, [chat(text) for text in texts])[0] == [0.0, 1.0]


def test_trl_mistakes_are_told_in_a_sentence(reward: trainers.TrlReward) -> None:
    with pytest.raises(ValueError, match=r"no column 'solution'.*columns: answer.*as_trl_reward\(column"):
        as_trl_calls(reward, [{"prompt": "?", "answer": "5"}], ["5"])
    with pytest.raises(ValueError, match="did you mean 'number'"):
        verifiers.as_trl_reward(answer_type="numbr")
    with pytest.raises(ValueError, match="boxed"):
        verifiers.as_trl_reward(extract="boxd")
    with pytest.raises(ValueError, match="any_of or all_of"):
        verifiers.as_trl_reward(lists="some_of")


def test_the_function_survives_pickling_and_has_a_name(reward: trainers.TrlReward) -> None:
    as_trl_calls(reward, [{"prompt": "?", "solution": "5"}], [r"\boxed{5}"])  # its pool is open
    again = pickle.loads(pickle.dumps(reward))
    assert (again.__name__, again.judge) == ("verifiers", reward.judge)
    assert as_trl_calls(again, [{"prompt": "?", "solution": "5"}], [r"\boxed{5}"])[0] == [1.0]


def test_the_real_trl_takes_it(reward: trainers.TrlReward) -> None:
    """Its own `_calculate_rewards`, with as much of a trainer around as that looks at."""
    grpo = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL is not installed")
    import torch

    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=False),
        args=SimpleNamespace(report_to=[]),
        reward_funcs=[reward],
        reward_func_names=[grpo.get_callable_name(reward)],
        reward_processing_classes=[None],
        state=SimpleNamespace(global_step=0),
        environments=None,
        logged={},
        _log_completion_extra=lambda column, values: trainer.logged.update({column: values}),
        _log_metric=lambda name, value: trainer.logged.update({name: value}),
    )
    calculate = grpo.GRPOTrainer._calculate_rewards
    calculate = getattr(calculate, "__wrapped__", calculate)
    inputs = [{"prompt": ASKED, "solution": "1/2"}] * 3
    completions = [chat(r"\boxed{0.5}"), chat(r"\boxed{2}"), chat("")]
    grpo_gather = grpo.gather
    grpo.gather = lambda values: values
    context, grpo.profiling_context = grpo.profiling_context, lambda *names: nullcontext()
    try:
        rewards = calculate(trainer, inputs, [ASKED] * 3, completions, [[1]] * 3)
    finally:
        grpo.gather, grpo.profiling_context = grpo_gather, context
    assert torch.equal(rewards, torch.tensor([[1.0], [0.0], [0.0]]))
    assert trainer.reward_func_names == ["verifiers"]
    assert trainer.logged["extracted"] == ["0.5", "2", ""]


def as_verl_calls(reward_kwargs: dict[str, Any]) -> Any:
    """The function that `get_custom_reward_fn` of verl (verl/trainer/ppo/reward.py, Apache-2.0) makes.

    It loads the file at `custom_reward_function.path`, takes the attribute `name`, and adds `reward_kwargs`.
    """
    spec = importlib.util.spec_from_file_location("custom_module", verl_reward.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_module"] = module
    spec.loader.exec_module(module)
    function = module.compute_score
    return lambda *args, **kwargs: function(*args, **kwargs, **reward_kwargs)


@pytest.fixture
def custom_module() -> Iterator[None]:
    yield
    sys.modules.pop("custom_module", None)


def test_verl_documents_these_parameters() -> None:
    """Those of docs/preparation/reward_function.rst; the fourth may be left out."""
    parameters = list(inspect.signature(verl_reward.compute_score).parameters.values())
    assert [p.name for p in parameters[:4]] == ["data_source", "solution_str", "ground_truth", "extra_info"]
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    assert required == ["data_source", "solution_str", "ground_truth"]


@pytest.mark.usefixtures("custom_module")
def test_verl_gets_a_score() -> None:
    """Called with the four keywords of `NaiveRewardManager` (verl/workers/reward_manager/naive.py)."""

    def score(function: Any, solution: str, truth: Any, extra: Any = None, **more: Any) -> float:
        return function(
            data_source="lighteval/MATH", solution_str=solution, ground_truth=truth, extra_info=extra, **more
        )

    function = as_verl_calls({})
    assert score(function, r"so \boxed{0.5}", r"\frac{1}{2}", {"split": "train", "index": 7}) == 1.0
    assert score(function, r"so \boxed{0.5}<|im_end|>", "1/2") == 1.0
    assert score(function, r"so \boxed{2}", r"\frac{1}{2}") == 0.0
    assert score(function, r"\boxed{1/3}", ["1/2", "1/3"]) == 1.0
    assert score(function, r"\boxed{7y}", "7y+") == 0.0
    assert score(function, r"\boxed{5}", 5, reward_router_address=None) == 1.0  # later verl passes more
    assert score(function, r"\boxed{75\%}", "75", {"question": "What percentage are roses?"}) == 1.0
    assert score(function, r"\boxed{75\%}", "75", {"question": "How many are roses?"}) == 0.0
    letters = as_verl_calls({"answer_type": "choice"})
    assert score(letters, r"\boxed{7}", "B", {"options": ["5", "7"]}) == 1.0
    thinks = as_verl_calls({"prompt_end": "<think>\n", "lists": "all_of"})
    assert score(thinks, r"\boxed{3, 5}", ["3", "5"]) == 0.0
    assert score(thinks, r"hm</think>\boxed{5, 3}", ["3", "5"]) == 1.0
    assert verifiers.compute_score("any", r"\boxed{5}", "5", {}) == 1.0
    assert Path(verl_reward.__file__).name == "verl_reward.py"
