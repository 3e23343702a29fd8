"""A learned reward model: what it is given, what it returns, and that batching does not matter."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, Qwen2Config

from mathrl.config import ModelConfig, RewardConfig
from mathrl.errors import UserError
from mathrl.policy.scratch import build_base
from mathrl.rewards.learned import RewardModelScorer, make_reward_model
from mathrl.rewards.scorer import RewardScorer, rollout_metrics
from mathrl.types import Completion, Group, Problem

PROBLEMS = [Problem(str(i), f"What is {i} + {i * i}?", str(i + i * i)) for i in range(7)]
COMPLETIONS = [Completion((1,) * (i + 1), f"#### {i}" + " so" * i, "stop") for i in range(7)]


def build(labels: int, folder=None):
    """A small classifier with random weights and its tokenizer."""
    _, tokenizer = build_base(ModelConfig(hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=2), seed=0)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, intermediate_size=64, num_labels=labels, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        parameter.data.mul_(3)
    if folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return model, tokenizer


def by_hand(model, tokenizer, problem, completion):
    """The logits of one question and completion by themselves, without padding."""
    inputs = tokenizer(problem.question, completion.text, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits[0]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_one_label_is_the_score_in_any_batch_and_order(batch_size):
    model, tokenizer = build(1)
    scorer = RewardModelScorer(model, tokenizer, max_tokens=64, batch_size=batch_size)
    expected = [by_hand(model, tokenizer, p, c).item() for p, c in zip(PROBLEMS, COMPLETIONS, strict=True)]
    assert scorer(PROBLEMS, COMPLETIONS) == pytest.approx(expected, abs=1e-5)
    assert scorer(PROBLEMS[::-1], COMPLETIONS[::-1]) == pytest.approx(expected[::-1], abs=1e-5)
    assert max(expected) - min(expected) > 0.01


def test_several_labels_are_the_last_ones_log_odds():
    model, tokenizer = build(3)
    scorer = RewardModelScorer(model, tokenizer, max_tokens=64)
    expected = []
    for problem, completion in zip(PROBLEMS, COMPLETIONS, strict=True):
        p = by_hand(model, tokenizer, problem, completion).softmax(0)
        expected.append(torch.log(p[2] / (p[0] + p[1])).item())
    assert scorer(PROBLEMS, COMPLETIONS) == pytest.approx(expected, abs=1e-4)


def test_a_chat_template_frames_question_and_completion():
    model, tokenizer = build(1)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    scorer = RewardModelScorer(model, tokenizer, max_tokens=64)
    text = f"user: {PROBLEMS[2].question} assistant: {COMPLETIONS[2].text} "
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits[0, 0].item()
    assert scorer([PROBLEMS[2]], [COMPLETIONS[2]]) == pytest.approx([expected], abs=1e-5)


def test_from_a_folder_into_the_reward_weighted_beside_the_verifier(tmp_path):
    model, tokenizer = build(1, tmp_path)
    config = RewardConfig(model_path=str(tmp_path), model_weight=0.5, num_workers=1)
    scorer = RewardScorer(config, "gsm8k", make_reward_model(config))
    try:
        group = Group(
            PROBLEMS[1], (3,), (Completion((1,), "#### 2", "stop"), Completion((1,), "#### 3", "stop"))
        )
        (scored,) = scorer.score([group])
    finally:
        scorer.close()
    logits = [by_hand(model, tokenizer, PROBLEMS[1], c).item() for c in group.completions]
    assert [s.reward for s in scored.scores] == pytest.approx(
        [1 + 0.5 * logits[0], 0.5 * logits[1]], abs=1e-5
    )
    metrics = rollout_metrics([scored])
    assert metrics["reward/answer"] == 0.5
    assert metrics["reward/model"] == pytest.approx(0.25 * sum(logits), abs=1e-5)


def test_none_without_a_path_and_one_sentence_for_a_bad_one(tmp_path):
    assert make_reward_model(RewardConfig()) is None
    assert make_reward_model(RewardConfig(model_path=str(tmp_path))) is None  # weight 0
    with pytest.raises(UserError, match="holds no sequence-classification model"):
        make_reward_model(RewardConfig(model_path=str(tmp_path), model_weight=1.0))
