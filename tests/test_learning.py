"""A loss curve is not evidence of learning: held-out reward must rise, and fall when the sign is wrong.

The base has a coin's habit: asked to name a number that it is shown, it was taught to name it half the time
and to answer 0 the other half. Half right is chance; only the rewards say which half to keep.
"""

from dataclasses import replace

import pytest
import torch

from mathrl.algorithms import Algorithm, resolve
from mathrl.config import Config
from mathrl.data import ProblemStream
from mathrl.evaluate import evaluate
from mathrl.policy import Policy
from mathrl.prompts import make_template
from mathrl.rewards import RewardScorer
from mathrl.rollout.transformers import TransformersEngine
from mathrl.scratch import build_base
from mathrl.trainer import Trainer
from mathrl.types import Problem, Sampling
from mathrl.update import make_update

TRAIN = [Problem(f"train-{n}", f"Say {n}.", str(n)) for n in range(10, 60) if n % 5]
HELD_OUT = [Problem(f"held-out-{n}", f"Say {n}.", str(n)) for n in range(10, 60, 5)]
CONFIG = Config.model_validate(
    {
        "recipe": "coin",
        "model": {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2, "intermediate_size": 64},
        "lora": {"rank": 4, "alpha": 8.0},
        "rollout": {"problems_per_step": 8, "group_size": 8, "max_completion_tokens": 6},
        "update": {"learning_rate": 1e-2},
        "train": {"num_steps": 12},
    }
)


@pytest.fixture(scope="module")
def coin(tmp_path_factory):
    """Folder of a small model that says N or 0 when asked to say N."""
    texts = [f"Question: {p.question}\nAnswer: #### {p.answer}" for p in TRAIN + HELD_OUT]
    model, tokenizer = build_base(CONFIG.model, seed=1, texts=texts)
    template = make_template(CONFIG, tokenizer)
    rows, labels = [], []
    for number in range(10, 60):
        prompt = list(template.encode(Problem("", f"Say {number}.", "")))
        for answer in (number, 0):
            target = list(template.encode_completion(template.direct_answer_text(Problem("", "", str(answer)))))
            rows.append(torch.tensor(prompt + target))
            labels.append(torch.tensor([-100] * len(prompt) + target))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    targets = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        loss = model(input_ids=ids, attention_mask=ids != tokenizer.pad_token_id, labels=targets).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("coin")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


class WrongSign(Algorithm):
    """GRPO that learns from its mistakes the wrong way round."""

    def advantages(self, batch, kl_coef=None):
        batch = super().advantages(batch, kl_coef)
        return batch.add(advantages=-batch.advantages)


def held_out_reward(folder: str, algorithm: Algorithm) -> tuple[float, float]:
    """Mean reward of sampled completions of held-out problems before and after training."""
    policy = Policy.from_pretrained(folder, CONFIG)
    template = make_template(CONFIG, policy.tokenizer)
    sampling = Sampling(max_completion_tokens=CONFIG.rollout.max_completion_tokens)
    engine = TransformersEngine(policy.model, policy.tokenizer, template.encode, sampling)
    scorer = RewardScorer(CONFIG.reward, "gsm8k")
    update = make_update(CONFIG, algorithm, policy)

    def reward() -> float:
        found = evaluate(engine, HELD_OUT, scorer, max_completion_tokens=6, num_samples=16, seed=3)
        assert found.mean_at_k is not None
        return found.mean_at_k

    before = reward()
    Trainer(CONFIG, algorithm, ProblemStream(TRAIN, 0), engine, scorer, policy, update).run()
    after = reward()
    scorer.close()
    return before, after


def test_held_out_reward_rises_beyond_chance_and_falls_with_the_sign_flipped(coin):
    grpo = resolve(CONFIG.algorithm, CONFIG.rollout, CONFIG.update)
    before, after = held_out_reward(coin, grpo)
    assert 0.3 < before < 0.7  # 160 throws of a fair coin: sd 0.04
    assert after > 0.9
    flipped = WrongSign(**{f: getattr(grpo, f) for f in Algorithm.__dataclass_fields__})
    assert replace(flipped) == flipped
    before, after = held_out_reward(coin, flipped)
    assert 0.3 < before < 0.7
    assert after < 0.1
