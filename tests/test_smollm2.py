"""A real pretrained chat model: it comes from the package index, knows something, is trained."""

import json

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mathrl
from benchmarks.smollm2 import NotReached, cached_model

ROWS = [
    {"question": f"A box has {n} pens. How many pens do two boxes have?", "answer": f"{2 * n}"}
    for n in range(2, 14)
]


@pytest.fixture(scope="module")
def model():
    """The model's folder; made once, and kept in the user's cache."""
    try:
        return cached_model()
    except NotReached as error:
        pytest.skip(f"the package index is not reached: {error}")


def test_it_is_the_published_model(model):
    """Wrong weights, tokens or template would not say so."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    assert tokenizer.tokenize("12345 pens") == ["1", "2", "3", "4", "5", "Ġpens"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    out = loaded.generate(**prompt, max_new_tokens=12, do_sample=False)
    said = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
    assert "Paris" in said
    assert said.endswith("<|im_end|>"), "it ends its turn by itself"


def letters(problem, completion, verdict):
    """No two completions that differ earn the same."""
    return len(completion.text) / 100


def test_it_is_trained_through_its_chat_template(model, tmp_path):
    run = mathrl.train(
        model=model,
        problems=ROWS,
        rewards=[letters],
        run={"output_dir": str(tmp_path), "device": "cpu"},
        sft={"skip": True},
        rollout={"problems_per_step": 2, "group_size": 2, "max_completion_tokens": 12},
        algorithm={"select": "all"},
        reward={"num_workers": 1},
        train={"num_steps": 2},
        evaluate={"num_problems": 1, "every_steps": 0},
        checkpoint={"every_steps": 0},
        tracking={"tensorboard": False},
    )
    assert [row["step"] for row in run.metrics] == [1, 2]
    assert all(row["policy/grad_norm"] > 0 for row in run.metrics)
    header, *_ = (json.loads(line) for line in (run.path / "evaluations" / "before.jsonl").open())
    asked = header["protocol"]["prompt"]["prompt"]
    assert asked.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    told = "Then write the final answer on the last line, after ####."
    assert asked.endswith(f"{{question}}\nThink step by step. {told}<|im_end|>\n<|im_start|>assistant\n")
    settings = peft.LoraConfig.from_pretrained(run.adapter)
    assert (settings.r, settings.base_model_name_or_path) == (32, str(model))
