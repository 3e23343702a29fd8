"""``mathrl pairs`` and ``mathrl reward-model`` as a user runs them: files, resume, use, refusals."""

import json
import math
import shutil
import signal
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mathrl.cli import main
from mathrl.commands import reward_model
from mathrl.config import ModelConfig, RewardConfig
from mathrl.policy.scratch import build_base
from mathrl.recipes import dump, load_config, load_recipe
from mathrl.rewards.learned import conversation, load_reward_model, make_reward_model
from mathrl.rewards.reward_model_folder import training_questions
from mathrl.types import Completion, Problem

SIZES = ModelConfig(
    hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, intermediate_size=48, vocab_size=400,
    context_length=256,
)  # fmt: skip
PROBLEMS = [(f"What is {i} + {i * i}?", i + i * i) for i in range(40)]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A base model, completions of forty problems, half of them right, and the pairs of them."""
    home = tmp_path_factory.mktemp("home")
    base, tokenizer = build_base(SIZES, seed=0)
    for parameter in base.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(6)
    base.save_pretrained(home / "base")
    tokenizer.save_pretrained(home / "base")
    rows = [
        {"question": question, "answer": f"{answer}", "id": i}
        | {"completions": [f" so {answer}\n#### {answer + wrong}" for wrong in (0, 1, 2, 0)]}
        for i, (question, answer) in enumerate(PROBLEMS)
    ]
    write(home / "completions.jsonl", rows)
    assert main(["pairs", str(home / "completions.jsonl"), "--out", str(home / "pairs.jsonl")]) == 0
    return home


def train(home: Path, name: str, *options: str) -> int:
    words = ["reward-model", f"--reward_model.base={home / 'base'}"]
    words += [f"--reward_model.pairs={home / 'pairs.jsonl'}", f"--run.output_dir={home / 'runs'}"]
    words += [f"--run.name={name}", "--reward_model.batch_pairs=8", "--reward_model.eval_every_steps=3"]
    words += ["--reward_model.learning_rate=0.01", "--lora.rank=4", "--run.num_threads=1"]
    words += ["--reward_model.eval_fraction=0.3"]
    words += ["--checkpoint.every_steps=2", "--reward_model.num_epochs=2", "--tracking.tensorboard=false"]
    return main([*words, *options])


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    assert train(home, "rm") == 0
    return home / "runs" / "rm"


def test_pairs_are_right_against_wrong_and_name_their_problems(home: Path, capsys) -> None:
    rows = [json.loads(line) for line in (home / "pairs.jsonl").read_text().splitlines()]
    answers = dict(PROBLEMS)
    assert len(rows) == 80  # one right text (twice sampled), two wrong ones
    for row in rows:
        answer = answers[row["question"]]
        assert row["chosen"].endswith(f"#### {answer}")
        assert not row["rejected"].endswith(f"#### {answer}")
    told = json.loads((home / "pairs.json").read_text())
    assert told["pairs"] == told["candidates"] == 80
    assert told["problems"] == {"answered": 40, "answered_both_ways": 40, "with_a_pair": 40}
    assert sorted({row["problem_id"] for row in rows}) == told["problem_ids"]
    words = ["pairs", str(home / "completions.jsonl"), "--out", str(home / "pairs.jsonl")]
    assert main(words) == 2
    assert "exists: choose another --out" in capsys.readouterr().err
    (home / "others.json").write_text("{}")  # what is told of the pairs would go there
    assert main([*words[:-1], str(home / "others.jsonl")]) == 2
    assert "others.json exists: choose another --out" in capsys.readouterr().err


def test_a_run_is_sampled_and_its_sampling_goes_on(home: Path, tmp_path: Path, monkeypatch) -> None:
    sampled = tmp_path / "run"
    sampled.mkdir()
    config = load_recipe("quickstart", [("run.name", "run"), ("rollout.max_completion_tokens", "12")])
    (sampled / "config.toml").write_text(dump(config))
    (sampled / "reference").symlink_to(home / "base")
    out = tmp_path / "pairs.jsonl"
    words = ["pairs", str(sampled), "--problems", "6", "--samples", "3", "--out", str(out)]
    assert main(words) == 2  # random answers: nothing is right
    kept = (tmp_path / "pairs-completions.jsonl").read_text().splitlines()
    assert len(kept) == 1 + 6 * 4
    assert {json.loads(line)["kind"] for line in kept} == {"header", "greedy", "sample"}
    asked = {json.loads(line)["question"] for line in kept[1:]}
    from mathrl.data.problems import load_problems

    assert asked == {p.question for p in load_problems(config.data, "train", 0).problems[:6]}

    from mathrl.rollout.transformers import TransformersEngine

    monkeypatch.setattr(TransformersEngine, "sample", lambda *a, **k: pytest.fail("sampled again"))
    assert main(words) == 2


def test_the_checkpoint_is_an_ordinary_classifier_and_so_is_the_adapter(home: Path, run: Path) -> None:
    rows = [json.loads(line) for line in (run / "held_out_pairs.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(run / "reward_model")
    whole = AutoModelForSequenceClassification.from_pretrained(run / "reward_model")
    base = AutoModelForSequenceClassification.from_pretrained(home / "base", num_labels=1)
    adapted = PeftModel.from_pretrained(base, run / "adapter")
    adapted.base_model.config.pad_token_id = tokenizer.pad_token_id
    for row in rows:
        for side in ("chosen", "rejected"):
            chat = conversation(row["question"], row[side])
            text = tokenizer.apply_chat_template(list(chat), tokenize=False)
            inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
            with torch.no_grad():
                for model in (whole, adapted):
                    score = model.eval()(**inputs).logits.item()
                    assert score == pytest.approx(row[f"{side}_score"], rel=1e-5, abs=1e-5)
    assert max(abs(row["chosen_score"]) for row in rows) > 0.01
    summary = json.loads((run / "summary.json").read_text())
    assert summary["saved_gap"] < 1e-5
    assert len(rows) == summary["pairs"]["held_out"]


def test_it_scores_from_its_run_its_checkpoint_and_its_adapter(run: Path) -> None:
    problems = [Problem(str(i), question, str(answer)) for i, (question, answer) in enumerate(PROBLEMS[:6])]
    completions = [Completion((1,), f" so\n#### {p.answer}", "stop") for p in problems]
    scores = [
        load_reward_model(str(path), "x")(problems, completions)
        for path in (run, run / "reward_model", run / "adapter")
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-6)
    assert scores[2] == pytest.approx(scores[0], abs=1e-5)
    model = make_reward_model(RewardConfig(model_path=str(run), model_weight=1.0))
    assert model is not None
    assert model(problems, completions) == scores[0]


def test_the_questions_it_was_trained_on_are_named(home: Path, run: Path, capsys) -> None:
    named = training_questions(str(run))
    held_out = {json.loads(line)["question"] for line in (run / "held_out_pairs.jsonl").open()}
    assert set(named) | held_out == {question for question, _ in PROBLEMS}
    assert not set(named) & held_out
    data = write(home / "set.jsonl", [{"question": q, "answer": f"#### {a}"} for q, a in PROBLEMS[:8]])
    words = ["eval", str(home / "base"), "--benchmark", "gsm8k", "--data", str(data), "--samples", "3"]
    words += ["--max-completion-tokens", "16", "--rank-by", str(run), "--out", str(home / "evaluation")]
    assert main(words) == 0
    told = capsys.readouterr().out
    overlap = len({q for q, _ in PROBLEMS[:8]} & set(named))
    assert f"{overlap} of 8 questions were trained on" in told
    assert "best@3" in told
    saved = json.loads((home / "evaluation/eval.json").read_text())["benchmarks"]["gsm8k"]["ranking"]
    assert set(saved["best_at_k"]) == {"1", "2", "3"}
    scores = json.loads((home / "evaluation/gsm8k/ranking.json").read_text())["scores"]
    assert {len(own) for own in scores.values()} == {3}
    assert "Ranked by a reward model" in (home / "evaluation/eval.html").read_text()


def test_saved_completions_are_ranked_without_a_policy(home: Path, run: Path, capsys) -> None:
    out = home / "judged"
    words = ["judge", str(home / "completions.jsonl"), "--rank-by", str(run), "--out", str(out)]
    assert main(words) == 0
    ranking = json.loads((out / "ranking.json").read_text())
    assert ranking["pair_accuracy"]["n"] == 40
    assert ranking["model"] == str(run)
    words = ["eval", str(home / "base"), "--benchmark", "gsm8k", "--rank-by", str(run)]
    assert main(words) == 2
    assert "--rank-by ranks samples: ask for two or more" in capsys.readouterr().err


def test_an_interrupted_run_ends_as_the_whole_one(home: Path, run: Path, monkeypatch, capsys) -> None:
    fit = reward_model.RewardModelFit

    class Stops(fit):
        def run(self, after_step, should_stop):
            def interrupted(done, metrics, improved):
                after_step(done, metrics, improved)
                if done == 5:
                    signal.raise_signal(signal.SIGINT)

            super().run(interrupted, should_stop)

    monkeypatch.setattr(reward_model, "RewardModelFit", Stops)
    assert train(home, "again") == 130
    assert "Stopped by SIGINT; what was done is saved" in capsys.readouterr().out
    assert train(home, "again") == 2  # without --resume it is refused
    monkeypatch.setattr(reward_model, "RewardModelFit", fit)
    assert train(home, "again", "--resume") == 0
    assert "resumed after step 5" in capsys.readouterr().out
    again = home / "runs" / "again"
    for name in ("reward_model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (again / name).read_bytes() == (run / name).read_bytes(), name
    assert (again / "held_out_pairs.jsonl").read_bytes() == (run / "held_out_pairs.jsonl").read_bytes()
    steps = [json.loads(line)["step"] for line in (again / "metrics.jsonl").open()]
    assert steps == list(range(1, len(steps) + 1))
    assert train(home, "again", "--resume") == 0
    assert "is trained" in capsys.readouterr().out


def test_one_report_tells_accuracy_curves_and_mistakes(run: Path, tmp_path: Path, capsys) -> None:
    summary = json.loads((run / "summary.json").read_text())
    page = (run / "report.html").read_text()
    assert f"{100 * summary['held_out']['accuracy']:.1f}" in page
    for word in ("Held-out pairs ranked right", "Loss", "Pairs ranked right", "Scores", "reward_model.pairs"):
        assert word in page
    assert "https://" not in page
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    for name in ("report.html", "summary.json", "held_out_pairs.jsonl"):
        (copy / name).unlink()
    assert main(["report", str(copy)]) == 0
    assert "This run has not finished" in (copy / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["pairs", "nowhere.jsonl", "--out", "p.jsonl"], "cannot read nowhere.jsonl"),
        (["pairs", "c.jsonl", "--out", "p.csv"], "must end in .jsonl"),
        (["pairs", "c.jsonl", "--out", "p.jsonl", "--length-ratio", "0.5"], "--length-ratio must be >= 1"),
        (["pairs", "c.jsonl", "--out", "p.jsonl", "--per-problem", "0"], "--per-problem must be >= 1"),
        (["pairs", "c.jsonl", "--out", "p.jsonl"], "none of 1 problems has both"),
        (["reward-model"], "--reward_model.pairs"),
        (["reward-model", "--reward_model.pairs", "p.jsonl"], "there is no reference in"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_a_sentence(words, told, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "c.jsonl", [{"question": "1 + 1?", "answer": "2", "completions": ["#### 2", "2"]}])
    assert main(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_micro_batch_left_open_is_what_the_memory_holds(home: Path, run: Path) -> None:
    options = ["--update.micro_batch_tokens=0", "--reward_model.num_epochs=1", "--resume"]
    assert train(home, "open", *options[:2]) == 0
    settled = load_config(home / "runs" / "open" / "config.toml").update.micro_batch_tokens
    assert settled >= 1024  # not a pair at a time
    assert train(home, "open", *options) == 0  # the folder knows what was settled


def test_a_pair_accuracy_is_a_mean_over_questions(home: Path) -> None:
    """Nine pairs of one question are one question: its interval is as wide as that of two."""
    from mathrl.training.reward_model_data import EncodedPair, Pair

    def pair(question: str, tokens: int) -> EncodedPair:
        asked, said = conversation(question, "a")
        other = conversation("", "b")[1]
        return EncodedPair(Pair((asked,), (said,), (other,)), (1,) * tokens, (1, 1), 1)

    pairs = [*(pair("one", 3) for _ in range(9)), pair("two", 1)]
    scores = torch.tensor([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    found = reward_model.measure(pairs, scores)
    assert found["accuracy"] == 0.5
    assert found["ci95"] == [0.0, 1.0]
    assert found["by_length"]["chosen longer"] == {
        "pairs": 9,
        "accuracy": 1.0,
        "ci95": pytest.approx([0.2065, 1.0], abs=1e-3),
    }
    assert math.isclose(found["by_length"]["chosen shorter"]["accuracy"], 0.0)
