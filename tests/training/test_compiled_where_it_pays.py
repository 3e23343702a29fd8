"""The trainer compiles as the plan said it would."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Config

from mathrl.cli import main
from mathrl.recipes import find_recipe
from mathrl.training import trainer as loop
from mathrl.training.compiled import compile_where_it_pays

SIZES = {"vocab_size": 151936, "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
         "num_key_value_heads": 2, "intermediate_size": 4864, "tie_word_embeddings": True}  # fmt: skip


class OnCuda:
    """A policy of the 0.5B shape, as far as it is asked."""

    device = torch.device("cuda")
    model = SimpleNamespace(get_base_model=lambda: SimpleNamespace(config=Qwen2Config(**SIZES)))

    def __init__(self, compiled: bool = False) -> None:
        self.compiled, self.calls = compiled, 0

    def compile(self, on: bool) -> None:
        self.compiled, self.calls = on, self.calls + 1


@pytest.mark.parametrize("steps", ["20", "230"])
def test_plan_and_trainer_agree(steps, monkeypatch, capsys):
    options = [("train.num_steps", steps), ("rollout.max_prompt_tokens", "512")]
    main(["plan", "gsm8k", "--gpu-memory-gib", "80", *(w for k, v in options for w in (f"--{k}", v))])
    policy = OnCuda()
    said = compile_where_it_pays(find_recipe("gsm8k", options), policy, 0, 0.0)
    assert said == capsys.readouterr().out.splitlines()[-1]
    assert policy.compiled == (steps == "230")
    # of two ranks each has half of a step's tokens, and of a run that goes on only the rest counts
    assert not compiled_of(find_recipe("gsm8k", options), 100)
    monkeypatch.setattr("mathrl.training.compiled.place", lambda: SimpleNamespace(world=2))
    assert not compiled_of(find_recipe("gsm8k", options), 0)


def compiled_of(config, steps_done: int) -> bool:
    policy = OnCuda()
    compile_where_it_pays(config, policy, steps_done, 0.0)
    return policy.compiled


def test_what_the_recipe_says_is_done_and_needs_no_words():
    for told in (True, False):
        policy = OnCuda(compiled=told)  # as Policy itself begins
        config = find_recipe("gsm8k", [("update.compile", str(told))])
        assert compile_where_it_pays(config, policy, 0, 0.0) == ""
        assert (policy.compiled, policy.calls) == (told, 0)


def test_a_run_chooses_by_what_is_left_of_it_then_tries_and_says_both(monkeypatch):
    """Before the first step, on CUDA: the choice, then the dry step that shows whether torch can compile."""
    config = find_recipe("gsm8k", [("train.overlap", "off")])
    monkeypatch.setattr(loop, "compile_where_it_pays", lambda own, policy, *left: f"chosen {left}")
    monkeypatch.setattr(loop, "dry_step", lambda *of: "tried")
    said = []
    hooks = loop.Hooks(should_stop=lambda done: True, say=said.append)
    trainer = loop.Trainer(config, None, None, None, None, OnCuda(), None, hooks, steps_done=3, seconds=50.0)
    trainer.run()
    assert said == ["chosen (3, 50.0)", "tried"]
