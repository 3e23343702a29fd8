"""Algorithms on one budget: the arithmetic of a made result, and a small comparison from end to end."""

import json
from statistics import fmean

import pytest
import torch
from double_policy import double_policy
from made_run import trial
from policy.conftest import build_batch

from mathrl.cli import main
from mathrl.commands.algorithm_comparison import constant_rate
from mathrl.commands.algorithm_trial import Budget, Ledger, kl_to_reference, memory_of
from mathrl.config import Config, UpdateConfig
from mathrl.recipes import dump, load_recipe
from mathrl.report.algorithm_page import render, summarise
from mathrl.training.update import learning_rate, make_update
from mathrl.types import Completion, Group, Problem


@pytest.fixture
def result():
    good, fair = [1] * 80 + [0] * 20, [1] * 60 + [0] * 40
    return {
        "recipe": "quickstart", "budgets": {"tokens": 5000, "seconds": 4.0}, "problems": 100, "jobs": 2,
        "cores": 2,
        "device": "cpu", "settings": {"trpo": {"cg_iterations": 6}, "ppo": {}}, "seconds": 60.0,
        "versions": {"torch": "2.13"}, "reference": {"accuracy": 0.2, "ci95": [0.13, 0.29]},
        "trials": [
            trial("trpo", 0, good, accepted=7, refused=3), trial("trpo", 1, good, accepted=8, refused=2),
            trial("ppo", 0, fair, explained_variance=0.4), trial("ppo", 1, good, explained_variance=0.2),
        ],
    }  # fmt: skip


def test_summary_by_hand(result):
    """TRPO is right on 80 problems with both seeds; PPO on 60 with both and on 20 more with one."""
    found = summarise(result)["tokens"]
    trpo, ppo = found["rows"]
    assert (trpo["algorithm"], ppo["algorithm"]) == ("trpo", "ppo")
    assert trpo["accuracy"] == pytest.approx(0.8)
    assert ppo["accuracy"] == pytest.approx(0.7)
    assert ppo["by_seed"] == [0.6, 0.8]
    assert (trpo["accepted"], trpo["refused"]) == (15, 5)
    assert ppo["explained_variance"] == pytest.approx(0.3)
    assert ppo["memory_mib"]["critic"] == pytest.approx(0.7)
    assert trpo["memory_mib"]["peak"] == 901.0
    low, high = ppo["ci95"]
    assert low < 0.7 < high
    assert high - low == pytest.approx(2 * 1.96 * 0.04, rel=0.15)  # per-problem sd 0.4, n = 100
    assert found["all_learn"]
    assert found["verdict"][0].startswith("trpo is ahead of ppo: +10.0 points")


def test_it_says_so_where_nothing_was_learned_or_nothing_separates(result):
    result["reference"] = {"accuracy": 0.6, "ci95": [0.5, 0.7]}
    result["trials"][2:] = result["trials"][2:][::-1]
    for t in result["trials"]:
        t["reached"]["seconds"] = t["reached"]["seconds"] | {"right": [1] * 79 + [0] * 21}
    assert not summarise(result)["tokens"]["all_learn"]
    assert "cannot be told from" in summarise(result)["seconds"]["verdict"][0]


def test_page(result):
    page = render(result, summarise(result))
    for words in ("After 5,000 sampled tokens", "After 4 seconds",
                  "15 trust-region steps accepted, 5 refused",
                  "critic with its optimiser 0.70 MiB", "Reward by time", "cg_iterations = 6"):  # fmt: skip
        assert words in page


def test_budget_and_ledger():
    ledger = Ledger()
    for accepted in (1.0, 0.0, 1.0):
        ledger.add({"tokens/sampled": 100.0, "time/rollout_s": 0.5, "time/update_s": 1.0, "time/step_s": 1.5,
                    "trust_region/accepted": accepted, "reward/mean": 0.5})  # fmt: skip
    assert (ledger.steps, ledger.tokens, ledger.accepted, ledger.refused) == (3, 300, 2, 1)
    assert ledger.total_seconds == pytest.approx(4.5)
    assert Budget(tokens=300).spent(300, 0.0)
    assert not Budget(tokens=301).spent(300, 1e9)
    assert Budget(seconds=4.0).spent(10**9, 4.5)
    assert not Budget().spent(10**9, 1e9)


def test_kl_to_the_reference_is_exact():
    """Against the full distributions of both, on the same completions; 0 with the adapter at its start."""
    policy, batch = double_policy(), build_batch((3, 5), (4,))
    completions = tuple(
        Completion(tuple(batch.completion_ids[i, :n].tolist()), "", "stop") for i, n in enumerate((3, 5))
    )
    group = Group(Problem("p", "q", "1"), tuple(batch.prompts[0].tolist()), completions)
    found = kl_to_reference(policy, [group], Config())
    with torch.no_grad():
        own, ref = (
            (
                policy.hidden_states(batch, reference=r)[batch.loss_mask] @ policy.head_weight().t()
            ).log_softmax(-1)
            for r in (False, True)
        )
    assert found == pytest.approx(float((own.exp() * (own - ref)).sum(-1).mean()), rel=1e-9)
    assert found > 0.01
    with torch.no_grad():
        for name, parameter in policy.model.named_parameters():
            if "lora_B" in name:
                parameter.zero_()
    assert kl_to_reference(policy, [group], Config()) == pytest.approx(0.0, abs=1e-12)


def test_memory_counts_the_optimiser_and_the_critic():
    config = Config.model_validate({"algorithm": {"name": "ppo", "value_rank": 2}})
    from mathrl.algorithms.table import resolve_algorithm

    algorithm = resolve_algorithm(config.algorithm, config.rollout, config.update)
    policy = double_policy()
    update = make_update(config, algorithm, policy)
    before = memory_of(policy, update)
    assert before["optimizer"] == 0.0
    assert before["critic"] == pytest.approx(
        sum(p.numel() * p.element_size() for p in update.critic.model.parameters) / 2**20
    )
    for parameter in update.parameters:
        parameter.grad = torch.ones_like(parameter)
    update.optimizer.step()
    assert memory_of(policy, update)["optimizer"] == pytest.approx(2 * before["adapter"], rel=0.01)
    assert before["peak"] > 100


TINY = {
    "model.hidden_size": 32, "model.num_layers": 1, "model.num_heads": 2, "model.num_kv_heads": 1,
    "model.intermediate_size": 64, "data.num_train_problems": 60, "sft.num_problems": 200,
    "sft.max_train_steps": 20, "sft.direct_answer_steps": 0, "sft.eval_every_steps": 20,
    "rollout.problems_per_step": 2, "rollout.group_size": 2, "rollout.max_completion_tokens": 8,
    "reward.num_workers": 1, "evaluate.num_problems": 6, "run.device": "cpu",
    "rollout.engine": "transformers",
}  # fmt: skip


def test_a_small_comparison_end_to_end_and_again_from_its_trials(tmp_path, capsys):
    arguments = [
        "compare",
        "--algorithms",
        "trpo,reinforce",
        "--seeds",
        "1",
        "--tokens",
        "60",
        "--seconds",
        "0.2",
    ]
    arguments += ["--out", str(tmp_path / "out")]
    for key, value in TINY.items():
        arguments += [f"--{key}", str(value)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "trial 3/3" in told
    assert "after 60 sampled tokens" in told
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    for one in found["trials"]:
        assert one["reached"]["tokens"]["tokens"] >= 60
        assert sum(one["reached"]["seconds"]["seconds"].values()) >= 0.2
        assert len(one["reached"]["tokens"]["right"]) == 6
    trpo = next(t for t in found["trials"] if t["algorithm"] == "trpo")["reached"]["tokens"]
    assert trpo["accepted"] + trpo["refused"] == trpo["steps"]
    assert "Algorithms on one budget" in (tmp_path / "out" / "comparison.html").read_text()
    assert main(arguments) == 0  # nothing is run again
    assert "trial" not in capsys.readouterr().out
    assert main([*arguments, "--update.learning_rate", "0.5"]) == 2
    assert "another update.learning_rate" in capsys.readouterr().err
    assert (tmp_path / "out" / ".mathrl-comparison").is_file()


def test_a_comparison_neither_takes_nor_deletes_a_folder_of_others(tmp_path, capsys):
    theirs = tmp_path / "theirs"
    (theirs / "reference").mkdir(parents=True)
    (theirs / "reference" / "book.txt").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".mathrl-run").write_text("{}")
    (run / "config.toml").write_text(dump(load_recipe("quickstart")))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for folder, said in ((theirs, "is no comparison"), (run, "is a run and no comparison")):
        for flag in ([], ["--overwrite"]):
            assert main(["compare", "--out", str(folder), *flag]) == 2
            assert said in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--algorithms", "trpo,gppo"], "did you mean"),
        (["--seeds", "0"], "--seeds must be more than 0"),
        (["--algorithm.name", "ppo"], "--algorithms"),
        (["--algorithms", "trpo", "--update.num_epochs", "2"], "uses the whole rollout once"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_trials_have_the_mean_of_a_falling_rate():
    falling = UpdateConfig(learning_rate=2e-3, schedule="cosine")
    mean = fmean(
        learning_rate(Config(update=falling, train={"num_steps": 1000}), step) for step in range(1000)
    )
    constant = constant_rate(falling)
    assert (constant.schedule, constant.learning_rate) == ("constant", pytest.approx(mean, rel=0.01))
    fixed = UpdateConfig(learning_rate=2e-3)
    assert constant_rate(fixed) == fixed
