"""``mathrl eval`` as a user runs it, on a tiny model: results, adapters and interruption."""

import csv
import json
import os
import re
import shutil
import signal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from evaluated_models import ROWS, evaluate, make_models, write

from mathrl.cli import main
from mathrl.commands.model_source import ModelSource
from mathrl.config import Config
from mathrl.evaluation.completions import read_evaluation
from mathrl.recipes import dump, load_recipe
from mathrl.rollout.transformers import TransformersEngine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


def texts(out: Path) -> list[str]:
    return [r.greedy.text for r in read_evaluation(out / "gsm8k").records]


def test_an_evaluation_leaves_numbers_completions_and_a_page(folder: Path, tmp_path: Path, capsys) -> None:
    out = evaluate(folder, tmp_path / "out", "--samples", 3, "--temperature", 0.7)
    saved = json.loads((out / "eval.json").read_text())["benchmarks"]["gsm8k"]
    judged = read_evaluation(out / "gsm8k")
    assert (saved["n"], saved["k"], len(judged.records)) == (8, 3, 8)
    assert saved["accuracy"] == judged.num_right / 8
    assert saved["protocol"]["temperature"] == 0.7
    assert saved["protocol"]["prompt"]["prompt"] == "Question: {question}\nAnswer:"
    assert saved["info"]["model"] == str(folder / "model")
    assert saved["tokens"] == sum(c.num_tokens for r in judged.records for c in (r.greedy, *r.samples))
    assert set(saved["seconds"]) == {"generate", "verify"}
    assert "torch" in json.loads((out / "eval.json").read_text())["versions"]
    assert "24 completions" not in (out / "eval.html").read_text()
    assert "32 completions" in (out / "eval.html").read_text()
    assert re.search(r"^gsm8k +8 ", capsys.readouterr().out, re.MULTILINE)


def test_an_adapter_is_what_its_merged_model_is(folder: Path, tmp_path: Path) -> None:
    plain = texts(evaluate(folder, tmp_path / "plain"))
    adapted = texts(evaluate(folder, tmp_path / "adapted", "--adapter", folder / "adapter"))
    merged = texts(evaluate(folder, tmp_path / "merged", model="merged"))
    assert adapted == merged
    assert sum(a != b for a, b in zip(plain, adapted, strict=True)) >= 6


def test_a_run_is_its_reference_with_its_adapter(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.toml").write_text(dump(load_recipe("quickstart", [("run.name", "run")])))
    (run / "reference").symlink_to(folder / "model")
    train = ["--trained-on", str(folder / "test.jsonl"), "--data", str(folder / "test.jsonl")]
    words = ["eval", str(run), "--benchmark", "gsm8k", "--max-completion-tokens", "24", *train]
    assert main(words) == 2  # there is no adapter yet
    (run / "adapter").symlink_to(folder / "adapter")
    assert main([*words, "--reference"]) == 0
    assert main([*words, "--against", str(run / "benchmarks-reference")]) == 0
    saved = json.loads((run / "benchmarks" / "eval.json").read_text())["benchmarks"]["gsm8k"]
    assert texts(run / "benchmarks-reference") == texts(evaluate(folder, tmp_path / "plain"))
    assert texts(run / "benchmarks") == texts(
        evaluate(folder, tmp_path / "adapted", "--adapter", folder / "adapter")
    )
    assert saved["difference"]["value"] == 0.0
    # the run's own training problems and the file's
    assert saved["contamination"]["training_questions"] > 1000
    assert saved["contamination"]["exact"] == 8
    assert "8 of 8 questions were trained on (8 word for word)" in (run / "benchmarks/eval.html").read_text()


@pytest.mark.parametrize("ending", ["json", "csv", "parquet"])
def test_any_format_gives_the_same_problems(folder: Path, tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"test.{ending}"
    if ending == "json":
        file.write_text(json.dumps(ROWS))
    elif ending == "csv":
        with open(file, "w", newline="") as out:
            writer = csv.DictWriter(out, ["question", "answer"])
            writer.writeheader()
            writer.writerows(ROWS)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)
    out = evaluate(folder, tmp_path / "out", "--max-problems", 3)
    again = tmp_path / "again"
    words = [
        "eval",
        str(folder / "model"),
        "--benchmark",
        "gsm8k",
        "--data",
        f"gsm8k={file}",
        "--out",
        str(again),
    ]
    assert main([*words, "--max-problems", "3", "--max-completion-tokens", "24"]) == 0
    first, second = read_evaluation(out / "gsm8k"), read_evaluation(again / "gsm8k")
    assert first.protocol == second.protocol
    assert first.records == second.records


def test_an_interrupted_evaluation_says_how_to_go_on_and_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    whole = read_evaluation(evaluate(folder, tmp_path / "whole", "--samples", 2) / "gsm8k")
    sample, done = TransformersEngine.sample, []

    def dying(self, problems, *args, on_completion, **settings):
        def count(*finished):
            on_completion(*finished)
            done.append(finished)
            if len(done) == 13:
                os.kill(os.getpid(), signal.SIGTERM)

        return sample(self, problems, *args, on_completion=count, **settings)

    monkeypatch.setattr(TransformersEngine, "sample", dying)
    out = evaluate(folder, tmp_path / "out", "--samples", 2, status=143)
    assert not (out / "lock").exists()
    assert "the same evaluation goes on from there" in capsys.readouterr().out
    assert not (out / "eval.json").exists()
    monkeypatch.undo()
    evaluate(folder, out, "--samples", 2)
    again = read_evaluation(out / "gsm8k")
    assert again.records == whole.records
    saved = json.loads((out / "eval.json").read_text())["benchmarks"]["gsm8k"]
    assert 8 <= saved["reused"] <= 13
    evaluate(folder, out, "--samples", 2)  # a finished one is not sampled again
    assert json.loads((out / "eval.json").read_text())["benchmarks"]["gsm8k"]["reused"] == 24


def test_new_weights_in_the_same_folder_are_another_model(folder: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(folder / "model", tmp_path / "mine")
    write(tmp_path / "test.jsonl", ROWS)
    out = evaluate(tmp_path, tmp_path / "out", model="mine")
    shutil.copy(folder / "other" / "model.safetensors", tmp_path / "mine")
    evaluate(tmp_path, out, model="mine", status=2)
    assert "holds another evaluation" in capsys.readouterr().err


def test_weights_are_known_by_what_they_hold_not_by_their_files_dates(tmp_path: Path) -> None:
    def facts(folder: Path) -> dict[str, str]:
        return ModelSource(str(folder), None, Config()).facts()

    one, copied = tmp_path / "one", tmp_path / "copied"
    one.mkdir()
    file = one / "model.safetensors"
    file.write_bytes(b"weights of 1")
    before, status = facts(one)["weights"], file.stat()
    shutil.copytree(one, copied)
    os.utime(copied / file.name, (1, 1))
    assert facts(copied)["weights"] == before
    file.write_bytes(b"weights of 2")  # as long, and dated like the others
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert facts(one)["weights"] != before
    (copied / file.name).rename(copied / "other.safetensors")
    assert facts(copied)["weights"] != before


def test_a_foreign_file_of_any_benchmark_is_met_before_the_first_is_generated(
    folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TransformersEngine, "sample", lambda *a, **k: pytest.fail("it sampled"))
    (tmp_path / "out" / "singleop").mkdir(parents=True)
    (tmp_path / "out" / "singleop" / "completions.jsonl").write_text("my notes\n")
    write(tmp_path / "op.jsonl", [{"input": "q", "target": "1"}])
    words = ["eval", str(folder / "model"), "--benchmark", "gsm8k,singleop", "--out", str(tmp_path / "out")]
    words += ["--data", f"gsm8k={folder / 'test.jsonl'}", "--data", f"singleop={tmp_path / 'op.jsonl'}"]
    assert main([*words, "--max-completion-tokens", "24"]) == 2
    assert "singleop/completions.jsonl holds another evaluation" in capsys.readouterr().err


def test_completions_of_other_weights_are_not_taken_over(folder: Path, tmp_path: Path, capsys) -> None:
    out = evaluate(folder, tmp_path / "out")
    mine = texts(out)
    evaluate(folder, out, model="other", status=2)
    assert "holds another evaluation" in capsys.readouterr().err
    assert texts(out) == mine
    evaluate(folder, out, "--overwrite", model="other")
    assert texts(out) != mine


def results(out: Path) -> dict[str, dict]:
    return json.loads((out / "eval.json").read_text())["benchmarks"]


def of_singleop(folder: Path, out: Path, *options: object, model: str = "model") -> int:
    rows = [{"input": f"Bob has {i} cats and gets {i}. How many?", "target": str(2 * i)} for i in range(4)]
    file = write(out.parent / "op.jsonl", rows)
    words = ["eval", str(folder / model), "--benchmark", "singleop", "--data", str(file), "--out", str(out)]
    return main([*words, "--max-completion-tokens", "8", *map(str, options)])


def test_results_of_other_benchmarks_stay_in_the_folder(folder: Path, tmp_path: Path, capsys) -> None:
    out = evaluate(folder, tmp_path / "out", "--samples", 1, "--trained-on", folder / "test.jsonl")
    of_gsm8k = results(out)["gsm8k"]
    capsys.readouterr()
    assert of_singleop(folder, out) == 0
    told = capsys.readouterr().out
    assert "singleop" in told
    assert "gsm8k" not in told
    both = results(out)
    assert both["gsm8k"] == of_gsm8k
    assert (both["singleop"]["n"], both["singleop"]["contamination"]) == (4, {})
    assert (out / "eval.html").read_text().count("8 of 8 questions were trained on") == 1
    evaluate(folder, out, "--samples", 1, "--trained-on", folder / "test.jsonl")  # the same again
    assert results(out).keys() == {"singleop", "gsm8k"}
    assert results(out)["singleop"] == both["singleop"]
    assert of_singleop(folder, out) == 0
    assert [results(out)[name]["reused"] for name in ("gsm8k", "singleop")] == [16, 4]
    kept = (out / "eval.json").read_bytes()
    page = (out / "eval.html").read_bytes()
    evaluate(folder, out, "--samples", 1, status=2)
    assert "has of gsm8k the overlap with training questions" in capsys.readouterr().err
    assert of_singleop(folder, out, model="other") == 2
    assert "holds another evaluation (other model" in capsys.readouterr().err
    shutil.rmtree(out / "singleop")  # its numbers are there still
    assert of_singleop(folder, out, "--max-problems", 2) == 2
    assert "eval.json holds another evaluation of singleop (other model" in capsys.readouterr().err
    evaluate(folder, out, "--samples", 1, "--trained-on", folder / "test.jsonl", status=2)
    assert "has results of singleop, which would be gone" in capsys.readouterr().err
    assert ((out / "eval.json").read_bytes(), (out / "eval.html").read_bytes()) == (kept, page)
    assert of_singleop(folder, out, "--overwrite", model="other") == 0
    assert results(out).keys() == {"singleop"}


def test_results_that_cannot_be_told_again_are_not_replaced(
    folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = evaluate(folder, tmp_path / "before")
    out = evaluate(folder, tmp_path / "out", "--against", before, model="other")
    kept = (out / "eval.json").read_bytes()
    page = tmp_path / "notes" / "eval.html"
    page.parent.mkdir()
    page.write_text("my notes")
    monkeypatch.setattr(TransformersEngine, "sample", lambda *a, **k: pytest.fail("it sampled"))
    assert of_singleop(folder, out, model="other") == 2
    assert "has a comparison of gsm8k, which would be gone" in capsys.readouterr().err
    evaluate(folder, out, model="other", status=2)
    assert f"has of gsm8k the comparison with {before}" in capsys.readouterr().err
    assert of_singleop(folder, before, model="other") == 2
    assert "eval.json holds an evaluation of gsm8k (other model" in capsys.readouterr().err
    evaluate(folder, page.parent, status=2)
    assert f"{page} exists" in capsys.readouterr().err
    evaluate(folder, page, status=2)
    assert f"{page} is a file and no folder" in capsys.readouterr().err
    assert ((out / "eval.json").read_bytes(), page.read_text()) == (kept, "my notes")
    monkeypatch.undo()
    evaluate(folder, out, "--against", before, model="other")  # the same again
    assert results(out)["gsm8k"]["difference"] == json.loads(kept)["benchmarks"]["gsm8k"]["difference"]


def test_files_of_ones_own_are_evaluated_together(folder: Path, tmp_path: Path, capsys) -> None:
    files = [
        write(tmp_path / name, [{"question": f"{name}?", "answer": 3}]) for name in ("a.jsonl", "b.jsonl")
    ]
    words = ["eval", str(folder / "model"), "--max-completion-tokens", "16", "--out"]
    one, two = (["--data", str(file)] for file in files)
    assert main([*words, str(tmp_path / "before"), *one, *two]) == 0
    compared = ["--against", str(tmp_path / "before")]
    assert main([*words, str(tmp_path / "out"), *one, *compared]) == 0
    assert main([*words, str(tmp_path / "out"), *two, *compared]) == 2
    assert "has a comparison of a, which would be gone: name it too with" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "out"), *two, *one, *compared]) == 0  # as that says
    sources = {name: table["benchmark"]["source"] for name, table in results(tmp_path / "out").items()}
    assert {name: source.split()[0] for name, source in sources.items()} == {"a": "a.jsonl", "b": "b.jsonl"}
    (tmp_path / "more").mkdir()
    same = write(tmp_path / "more" / "a.jsonl", [{"question": "And now?", "answer": 4}])
    assert main([*words, str(tmp_path / "out"), *one, "--data", str(same)]) == 2
    assert "two files of --data are named 'a'" in capsys.readouterr().err


def test_few_shot_prompts_show_examples_and_none_of_the_questions(folder: Path, tmp_path: Path) -> None:
    shown = [
        {"question": f"Bob counts {i} cats. How many?", "answer": f"They are {i}.\n#### {i}"}
        for i in range(9)
    ]
    examples = write(tmp_path / "train.jsonl", [*ROWS, *shown])
    options = ("--shots", 2, "--shots-data", examples, "--seed", 4)
    out = evaluate(folder, tmp_path / "a", *options)
    protocol = read_evaluation(out / "gsm8k").protocol
    prompt = protocol["prompt"]["prompt"]
    assert re.fullmatch(
        r"(Question: Bob counts (\d) cats\. How many\?\nAnswer: They are \2\.\n#### \2\n\n){2}"
        r"Question: \{question\}\nAnswer:",
        prompt,
    )
    assert protocol["stop"] == "\nQuestion:"
    again = read_evaluation(evaluate(folder, tmp_path / "b", *options) / "gsm8k")
    assert again.protocol == protocol
    other = evaluate(folder, tmp_path / "c", "--shots", 2, "--shots-data", examples, "--seed", 5)
    assert read_evaluation(other / "gsm8k").protocol["prompt"]["prompt"] != prompt


def test_a_chat_model_is_asked_by_its_own_template(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", tmp_path / "chat")
    (tmp_path / "chat" / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<me>{% endif %}"
    )
    write(tmp_path / "test.jsonl", ROWS)
    out = evaluate(tmp_path, tmp_path / "out", "--model.system_prompt", "Be brief.", model="chat")
    prompt = read_evaluation(out / "gsm8k").protocol["prompt"]
    assert prompt["kind"] == "chat"
    assert re.fullmatch(r"<system>Be brief\.<user>\{question\}\n.* after ####\.<me>", prompt["prompt"])
    plain = evaluate(tmp_path, tmp_path / "plain", "--model.prompt", "plain", model="chat")
    assert read_evaluation(plain / "gsm8k").protocol["prompt"]["kind"] == "plain"
    evaluate(tmp_path, tmp_path / "x", "--against", plain, model="chat", status=2)


def test_a_benchmark_of_ones_own(folder: Path, tmp_path: Path) -> None:
    rows = [
        {"q": "One and one?", "context": "Count.", "a": "about 2 things", "level": 1 + i % 2}
        for i in range(12)
    ]
    write(tmp_path / "mine.jsonl", rows)
    own = tmp_path / "mine.toml"
    own.write_text(
        '[mine]\nquestion = ["context", "q"]\nanswer = "a"\nanswer_pattern = "about (.*) things"\n'
        'answer_type = "number"\nmeta = { level = "level" }\nmax_completion_tokens = 20\n'
    )
    out = tmp_path / "out"
    words = ["--benchmark", str(own), "--data", f"mine={tmp_path}/mine.jsonl", "--out", str(out)]
    assert main(["eval", str(folder / "model"), *words]) == 0
    judged = read_evaluation(out / "mine")
    assert judged.records[0].problem.question == "Count. One and one?"
    assert {r.problem.answer for r in judged.records} == {"2"}
    assert judged.protocol["max_completion_tokens"] == 20
    assert [s.value for s in judged.by("level")] == ["1", "2"]
    assert (
        json.loads((out / "eval.json").read_text())["benchmarks"]["mine"]["benchmark"]["num_duplicates"] == 11
    )


def test_the_list_of_benchmarks(capsys) -> None:
    assert main(["eval", "--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"gsm8k", "gsm_hard", "svamp", "math500", "aime24", "aqua", "olympiadbench"} <= set(listed)
    assert len(listed) == 20
