"""``mathrl eval``: what is wrong is told in one sentence, before anything is generated."""

from pathlib import Path

import huggingface_hub
import pytest
from evaluated_models import ROWS, SIZES, evaluate, make_models, write

from mathrl.cli import main
from mathrl.policy.scratch import build_base
from mathrl.rollout.transformers import TransformersEngine

G = "--benchmark gsm8k --data {d} "
REFUSED = (
    ("", "name what to evaluate"),
    ("{m}", "name a benchmark"),
    ("{m} --benchmark gms8k", "did you mean 'gsm8k'"),
    ("{m} --benchmark math500", "--data math500=FILE"),
    ("{m} --benchmark addsub", "has no copy on the hub: give its file with --data addsub="),
    ("{f}/modle " + G, "did you mean 'model'"),
    ("nobody/nothing " + G, "cannot be reached"),
    ("{f}/adapter " + G, "is an adapter, not a model"),
    ("{m} --adapter {f}/other " + G, "no adapter_config.json"),
    ("{f}/wide --adapter {f}/adapter " + G, "adapter"),
    ("{m} --reference " + G, "is no run folder"),
    ("{m} --benchmark gsm8k --data {f}/tset.jsonl", "did you mean 'test.jsonl'"),
    ("{m} --benchmark svamp --data {d}", "row 1, has no field 'Body'"),
    ("{m} --benchmark multiarith --data {t}/empty.jsonl", "2 of 3 rows make no problem (row 2: empty answer"),
    ("{m} --benchmark multiarith --data {t}/odd.jsonl", "row 1: expected one number, got 'no number'"),
    ("{m} --benchmark multiarith --data {t}/none.jsonl", "is empty"),
    ("{m} --benchmark gsm8k,svamp --data {d}", "say which benchmark it is"),
    ("{m} --benchmark gsm8k --data svamp={d}", "none of the benchmarks asked for"),
    ("{m} --benchmark gsm8k,gsm8k --data {d}", "named twice"),
    ("{m} --benchmark gsm8k --data {t}/long.jsonl", "context of 256"),
    ("{m} " + G + "--max-completion-tokens 250", "too few for 250"),
    ("{m} " + G + "--shots 3 --shots-data {d}", "0 worked solutions"),
    ("{m} " + G + "--shots-data {d}", "--shots is missing"),
    ("{m} --benchmark singleop --data {t}/good.jsonl --shots 2", "no training split"),
    ("{m} " + G + "--temperature 0", "--temperature must be > 0"),
    ("{m} " + G + "--samples -1", "--samples must be >= 0"),
    ("{m} " + G + "--against {t}/nowhere", "cannot read"),
    ("{m} " + G + "--model.prompt chat", "no chat template"),
    ("{m} " + G + "--model.promt chat", "model.prompt"),
    ("{m} " + G + "--data.answer_field gold", "no --data.answer_field: the columns and the answer type of a"),
    ("{m} " + G + "--rollout.temperature 0.5", "no --rollout.temperature: say it with --temperature"),
    ("{m} " + G + "--train.num_steps 5", "no --train.num_steps: it changes nothing"),
    ("{m} --benchmark {t}/bad.toml", "is not TOML"),
    ("{m} --benchmark {t}/none.toml", "none.toml names no benchmark"),
    ("{m} --benchmark {t}/key.toml", "unknown key 'anser': did you mean 'answer'"),
    ("{m} --benchmark {t}/type.toml", "'numbr'"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def bad_files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    files = tmp_path_factory.mktemp("bad")
    write(files / "empty.jsonl", [{"input": "q", "target": answer} for answer in ("1", "", None)])
    write(files / "good.jsonl", [{"input": "q", "target": "1"}])
    write(files / "odd.jsonl", [{"input": "q", "target": "no number"}, {"input": "r", "target": "}{"}])
    write(files / "long.jsonl", [*ROWS, {"question": "many words " * 400, "answer": "#### 1"}])
    (files / "none.jsonl").write_text("")
    (files / "bad.toml").write_text("[x\n")
    (files / "none.toml").write_text("")
    (files / "key.toml").write_text('[x]\nanser = "a"\n')
    (files / "type.toml").write_text('[x]\nanswer_type = "numbr"\n')
    wide, tokenizer = build_base(
        SIZES.model_copy(update={"hidden_size": 64, "intermediate_size": 96}), seed=0
    )
    wide.save_pretrained(folder / "wide")
    tokenizer.save_pretrained(folder / "wide")
    return files


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_is_wrong_is_one_sentence_before_anything_is_generated(
    words: str,
    message: str,
    folder: Path,
    bad_files: Path,
    tmp_path: Path,
    capsys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(TransformersEngine, "sample", lambda *a, **k: pytest.fail("it sampled"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    names = {"m": folder / "model", "f": folder, "d": folder / "test.jsonl", "t": bad_files}
    out = tmp_path / "out"
    assert main(["eval", *words.format(**names).split(), "--out", str(out)]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told
    assert told.startswith("mathrl: ")
    assert not out.exists()


def test_another_protocol_is_refused_before_anything_is_generated(
    folder: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = evaluate(folder, tmp_path / "before")
    monkeypatch.setattr(TransformersEngine, "sample", lambda *a, **k: pytest.fail("it sampled"))
    evaluate(folder, tmp_path / "after", "--samples", 2, "--against", before, status=2)
    assert "differ in num_samples (0 against 2)" in capsys.readouterr().err
    evaluate(folder, tmp_path / "after", "--max-problems", 7, "--against", before, status=2)
    assert "differ in num_problems (8 against 7)" in capsys.readouterr().err
