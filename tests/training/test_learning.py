"""A loss curve is not evidence of learning: held-out reward must rise, and fall when the sign is wrong.

The base has a coin's habit: asked to say a digit that it is shown, it was taught to say it half the time and
to answer 0 the other half. Half right is chance; only the rewards say which half to keep. Who asks differs
between the problems that train and those that are held out.
"""

from dataclasses import fields

import pytest
import torch

from mathrl.algorithms.table import ALGORITHMS, Algorithm, resolve_algorithm
from mathrl.config import Config
from mathrl.data.prompts import make_template
from mathrl.data.stream import ProblemStream
from mathrl.evaluation.evaluate import EvaluationSettings, evaluate_problems
from mathrl.policy.model import Policy
from mathrl.policy.scratch import build_base
from mathrl.rewards.scorer import RewardScorer
from mathrl.rollout.transformers import TransformersEngine
from mathrl.training.trainer import Trainer
from mathrl.training.update import make_update
from mathrl.types import Problem, Sampling

TRAINS, HOLDS_OUT = ("Ann", "Ben", "Eva", "Jim", "Max", "Sue", "Una", "Zoe"), ("Kim", "Leo", "Tom", "Val")
TRAIN = [Problem(f"{who}-{n}", f"{who}: {n}", str(n)) for who in TRAINS for n in (4, 7)]
HELD_OUT = [Problem(f"{who}-{n}", f"{who}: {n}", str(n)) for who in HOLDS_OUT for n in (4, 7)]
KNOBS = {"trpo": {"trust_region_kl": 0.02, "fisher_fraction": 0.25, "cg_iterations": 5}}
STEPS = 200  # of the base's own training
CONFIG = Config.model_validate(
    {
        "recipe": "coin",
        "model": {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 2,
            "intermediate_size": 128,
        },
        "lora": {"rank": 4, "alpha": 8.0},
        "rollout": {"problems_per_step": 8, "group_size": 8, "max_completion_tokens": 6},
        "update": {"learning_rate": 5e-3},
        "train": {"num_steps": 24},
    }
)


@pytest.fixture(scope="module")
def coin(tmp_path_factory):
    """Folder of a small model that says N or 0 when asked to say N."""
    texts = [f"Question: {p.question}\nAnswer: #### {p.answer}" for p in TRAIN + HELD_OUT]
    model, tokenizer = build_base(CONFIG.model, seed=1, texts=texts)
    template = make_template(CONFIG, tokenizer)
    rows, labels = [], []
    for problem in TRAIN + HELD_OUT:
        prompt = list(template.encode(problem))
        for answer in (problem.answer, "0"):
            target = list(template.encode_completion(template.direct_answer_text(Problem("", "", answer))))
            rows.append(torch.tensor(prompt + target))
            labels.append(torch.tensor([-100] * len(prompt) + target))
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    targets = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS, pct_start=0.1)
    for _ in range(STEPS):
        loss = model(input_ids=ids, attention_mask=ids != tokenizer.pad_token_id, labels=targets).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("coin")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def scorer():
    scorer = RewardScorer(CONFIG.reward, "gsm8k")
    yield scorer
    scorer.close()


class WrongSign(Algorithm):
    """An algorithm that learns from its mistakes the wrong way round."""

    def advantages(self, batch, kl_coef=None):
        batch = super().advantages(batch, kl_coef)
        return batch.add(advantages=-batch.advantages)


def held_out_reward(
    folder: str, scorer: RewardScorer, name: str, row: type[Algorithm], **knobs
) -> list[float]:
    """Mean reward of sampled completions of held-out problems before and after training."""
    algorithm = {"name": name, **knobs}
    config = CONFIG.model_copy(update={"algorithm": CONFIG.algorithm.model_copy(update=algorithm)})
    resolved = resolve_algorithm(config.algorithm, config.rollout, config.update)
    policy = Policy.from_pretrained(folder, config)
    template = make_template(config, policy.tokenizer)
    sampling = Sampling(max_completion_tokens=config.rollout.max_completion_tokens)
    engine = TransformersEngine(policy.model, policy.tokenizer, template.encode, sampling)
    chosen = row(**{f.name: getattr(resolved, f.name) for f in fields(Algorithm)})
    update = make_update(config, chosen, policy)
    trainer = Trainer(config, chosen, ProblemStream(TRAIN, 0), engine, scorer, policy, update)
    found = []
    for train in (False, True):
        if train:
            trainer.run()
        held_out = evaluate_problems(engine, HELD_OUT, scorer, EvaluationSettings(6, num_samples=16), seed=3)
        found.append(held_out.mean_at_k)
    return found


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_raises_held_out_reward_beyond_chance(coin, scorer, name):
    before, after = held_out_reward(coin, scorer, name, Algorithm, **KNOBS.get(name, {}))
    assert 0.3 < before < 0.7  # 128 throws of a fair coin: sd 0.044
    assert after > 0.8


@pytest.mark.parametrize("name", ["grpo", "trpo"])
def test_held_out_reward_falls_with_the_sign_of_the_advantage_flipped(coin, scorer, name):
    before, after = held_out_reward(coin, scorer, name, WrongSign, **KNOBS.get(name, {}))
    assert 0.3 < before < 0.7
    assert after < 0.2
