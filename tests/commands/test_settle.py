"""What a recipe leaves open is settled by the data and the model, kept in the run, and told at the start."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from mathrl.cli import main
from mathrl.commands.going_on import settled_before
from mathrl.commands.opening import opening
from mathrl.commands.prepare import prepare
from mathrl.commands.settle import settle_limits, settle_micro_batch
from mathrl.config import Config
from mathrl.data.problem_set import ProblemSet
from mathrl.data.wordproblems import corpus, generate_problems
from mathrl.errors import UserError
from mathrl.policy.scratch import build_tokenizer
from mathrl.recipes import config_of, dump, find_recipe, load_config
from mathrl.types import Problem

TINY = Path(__file__).parents[1] / "tiny.toml"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A chat model that knows nothing, as a folder."""
    folder = tmp_path_factory.mktemp("model") / "chatty"
    tokenizer = build_tokenizer(corpus(), 400)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}Answer:"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        intermediate_size=64,
        max_position_embeddings=640,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    """A file with worked solutions, and one without."""
    folder = tmp_path_factory.mktemp("problems")
    found = generate_problems(120, 0, max_steps=2)
    for name, keys in (("solved", ("question", "answer", "solution")), ("bare", ("question", "answer"))):
        rows = [json.dumps({key: getattr(p, key) for key in keys}) for p in found]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def recipe(model, data, out, **fields):
    fields = {"model.path": str(model), "data.path": str(data), "run.output_dir": str(out)} | {
        name.replace("__", "."): str(value) for name, value in fields.items()
    }
    return find_recipe("", list(fields.items()))


def lengths(*tokens):
    """A template by which the problem "n" has n tokens, and the problems."""
    template = SimpleNamespace(encode_all=lambda problems: [(0,) * int(p.question) for p in problems])
    return template, [ProblemSet("x", tuple(Problem(f"{n}", f"{n}", "1") for n in tokens))]


OPEN = {"rollout": {"max_prompt_tokens": 0, "max_completion_tokens": 0}}


@pytest.mark.parametrize(
    ("rollout", "tokens", "context", "limits"),
    [
        ({}, (10, 90, 40), 8192, (90, 1024)),
        ({}, (3,), 8192, (8, 1024)),  # no prompt limit is below 8
        ({}, (90,), 700, (90, 610)),  # what the context leaves
        ({}, (90, 5000), 2048, (1024, 1024)),  # half of the context: longer problems are left out
        ({"max_completion_tokens": 256}, (90,), 700, (90, 256)),
        ({"max_prompt_tokens": 64}, (90,), 700, (64, 636)),
    ],
)
def test_limits_come_from_the_data_and_the_model(rollout, tokens, context, limits):
    config = config_of({"rollout": OPEN["rollout"] | rollout}, "test")
    settled = settle_limits(config, *lengths(*tokens), context).rollout
    assert (settled.max_prompt_tokens, settled.max_completion_tokens) == limits


def test_a_context_without_room_is_refused():
    config = config_of({"rollout": {"max_prompt_tokens": 500, "max_completion_tokens": 0}}, "test")
    with pytest.raises(UserError, match="context of 512 tokens leaves 12 for a completion"):
        settle_limits(config, *lengths(20), 512)


def test_what_is_said_is_left_alone():
    config = Config()
    assert settle_limits(config, *lengths(20), 512) == config
    assert settle_micro_batch(config) == config


def test_a_micro_batch_is_what_the_memory_holds(monkeypatch):
    def tokens(gib):
        monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=int(gib * 2**30)))
        large = {"hidden_size": 512, "num_layers": 12, "num_heads": 8, "intermediate_size": 2048}
        table = {"model": large, "update": {"micro_batch_tokens": 0}, "run": {"device": "cpu"}}
        table["rollout"] = {"engine": "transformers", "max_completion_tokens": 1000}
        return settle_micro_batch(config_of(table, "test")).update.micro_batch_tokens

    found = [tokens(gib) for gib in (1, 6, 8, 12, 64)]
    assert found[0] == 1024  # the least: a step that runs out of memory halves it
    assert found == sorted(found)
    assert found[0] < found[2] < found[4] == 4096  # the most on a CPU


def test_the_start_says_what_was_chosen_and_why(model, problems, tmp_path):
    run = prepare(
        recipe(model, problems / "solved.jsonl", tmp_path, sft__batch_tokens=512),
        resume=False,
        overwrite=False,
    )
    rollout = run.config.rollout
    longest = max(
        len(ids)
        for found in (run.train, *run.held_out.values())
        for ids in run.demonstrations.template.encode_all(found.problems)
    )
    assert rollout.max_prompt_tokens == longest
    assert rollout.max_completion_tokens == 640 - longest
    lines = list(opening(run))
    assert lines[0] == f"default: grpo on solved.jsonl → {tmp_path}/default"
    assert lines[1].startswith("  model: chatty, 0.0 M parameters, float32 on cpu, LoRA of rank 32")
    assert "a supervised stage of at most" in lines[2]
    assert "an adapter, merged" in lines[2]
    assert f"prompts of {longest} tokens (the longest of the problems)" in lines[3]
    assert f"completions of {640 - longest} (what the context leaves); the model reads 640" in lines[3]
    most = 32 * longest + 256 * (640 - longest)
    assert (
        f"32 problems × 8 completions = 256 completions, 1 update of 256 each; at most {most:,} tokens"
        in lines[4]
    )
    assert "GiB" in lines[4]
    assert [line.split(":")[0].strip() for line in lines[5:]] == ["solved", "asked", "held out"]


def test_without_worked_solutions_the_model_is_trained_from_as_it_is(model, problems, tmp_path):
    run = prepare(recipe(model, problems / "bare.jsonl", tmp_path), resume=False, overwrite=False)
    assert run.config.sft.skip
    assert run.demonstrations is None
    assert any("no supervised stage" in line for line in opening(run))
    with pytest.raises(UserError, match="worked solution"):  # asked for by name
        bare = str(problems / "bare.jsonl")
        prepare(recipe(model, bare, tmp_path, sft__path=bare), resume=False, overwrite=False)
    assert (
        main(["sft", "--model.path", str(model), "--data.path", bare, "--run.output_dir", str(tmp_path)]) == 2
    )


def test_no_problem_is_kept_for_a_supervised_stage_that_there_is_not(model, problems, tmp_path):
    def asked(data, **fields):
        run = prepare(recipe(model, problems / data, tmp_path, **fields), resume=False, overwrite=False)
        return len(run.train) + len(run.held_out["held_out"]), run.config.data.sft_fraction

    kept, share = asked("solved.jsonl")
    assert (70 < kept < 105, share) == (True, 0.3)
    assert asked("bare.jsonl") == (120, 0.0)
    assert asked("solved.jsonl", sft__skip=True) == (120, 0.0)
    others = tmp_path / "others.jsonl"
    others.write_text(json.dumps({"question": "1+1?", "answer": "2", "solution": "1+1=2"}) + "\n")
    assert asked("solved.jsonl", sft__path=others) == (120, 0.0)


def test_a_run_that_goes_on_takes_what_was_settled_from_its_folder(model, problems, tmp_path):
    config = recipe(model, problems / "bare.jsonl", tmp_path)
    run = prepare(config, resume=False, overwrite=False)
    with run.folder.open(run.config, overwrite=False):
        pass
    saved = run.folder.config
    assert load_config(saved) == run.config
    shutil.copy(problems / "bare.jsonl", tmp_path / "kept.jsonl")
    try:  # even where the data would now settle it otherwise
        with (problems / "bare.jsonl").open("a") as file:
            file.write(json.dumps({"question": "What is one and one? " * 8, "answer": "2"}) + "\n")
        again = prepare(config, resume=True, overwrite=False)
    finally:
        shutil.copy(tmp_path / "kept.jsonl", problems / "bare.jsonl")
    assert again.goes_on
    assert again.config == run.config
    assert settled_before(config, tmp_path / "nowhere.toml") == config
    with pytest.raises(UserError, match=r"rollout.max_prompt_tokens"):
        prepare(
            recipe(model, problems / "bare.jsonl", tmp_path, rollout__max_prompt_tokens=300),
            resume=True,
            overwrite=False,
        )
    assert "max_prompt_tokens = 0" in dump(config)


def test_the_default_recipe_trains_a_model(model, problems, tmp_path, capsys):
    """End to end, on a model that knows nothing: supervised stage, two steps, results."""
    words = ["train", "--model.path", str(model), "--data.path", str(problems / "solved.jsonl")]
    words += ["--run.output_dir", str(tmp_path), "--run.num_threads", "1", "--train.num_steps", "2"]
    words += ["--rollout.problems_per_step", "4", "--rollout.group_size", "2", "--evaluate.num_problems", "4"]
    words += [
        "--rollout.max_completion_tokens",
        "16",
        "--sft.learning_rate",
        "3e-3",
        "--reward.num_workers",
        "1",
    ]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "default: grpo on solved.jsonl" in out
    looks = [
        json.loads(line) for line in (tmp_path / "default" / "sft_metrics.jsonl").read_text().splitlines()
    ]
    assert looks[-1]["sft/held_out_loss"] < looks[0]["sft/held_out_loss"]
    assert (tmp_path / "default" / "adapter" / "adapter_model.safetensors").is_file()
    assert main([*words, "--resume"]) == 0
    assert "is finished" in capsys.readouterr().out


def test_a_base_model_is_shown_worked_examples(model, problems, tmp_path, capsys):
    words = ["train", "--model.path", str(model), "--data.path", str(problems / "solved.jsonl"), "--sft.skip"]
    words += ["--run.output_dir", str(tmp_path), "--run.num_threads", "1", "--train.num_steps", "1"]
    words += ["--rollout.problems_per_step", "4", "--rollout.group_size", "2", "--evaluate.num_problems", "2"]
    words += ["--rollout.max_completion_tokens", "8", "--reward.num_workers", "1", "--data.shots", "2"]
    assert main([*words, "--model.prompt", "chat"]) == 2
    assert "data.shots is for plain prompts" in capsys.readouterr().err
    assert main([*words, "--model.prompt", "plain"]) == 0
    run = tmp_path / "default"
    header = json.loads((run / "evaluations" / "before.jsonl").read_text().splitlines()[0])
    assert json.dumps(header).count("Question: ") == 3  # two examples and the question
    config = load_config(run / "config.toml")
    assert (config.data.shots, config.model.prompt) == (2, "plain")
    again = prepare(config, resume=True, overwrite=False)
    assert len(again.shown) == 2
    asked = {p.question for p in again.train.problems}
    assert not asked & {p.question for p in again.shown}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.stop_tokens", "<|nope|>"], "the tokenizer has no token '<|nope|>'"),
        (["--lora.targets", "q_prj"], "lora.targets names 'q_prj', which fits no linear layer"),
        (["--lora.targets", "lm_head"], "lora.targets names 'lm_head'"),
    ],
)
@pytest.mark.parametrize("scratch", [False, True])
def test_layers_and_tokens_that_are_not_there_are_refused_before_a_folder_is_made(
    model, words, told, scratch, tmp_path, capsys
):
    own = [] if scratch else ["--model.path", str(model), "--sft.skip"]
    runs = tmp_path / "runs"
    assert main(["train", str(TINY), *own, *words, "--run.output_dir", str(runs)]) == 2
    assert told in capsys.readouterr().err
    assert not runs.exists()
