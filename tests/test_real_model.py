"""The study of a real model: adapters that travel in pieces, and what its table says of made curves."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import adapter_pieces
from real_model import fields
from real_model_table import beside, run, saved, with_tokens

from mathrl.evaluation.paired import compare_evaluations
from mathrl.recipes import load_recipe
from mathrl.report.run_record import MAIN_SET, read_run


def test_an_adapter_travels_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(adapter_pieces, "PIECE_BYTES", (1 << 16) + 5000)
    generator = torch.Generator().manual_seed(0)
    tensors = {f"layer.{i}.lora_A.weight": torch.randn(8, 100, generator=generator) for i in range(7)}
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"r": 8}')
    pieces = adapter_pieces.pack(tmp_path / "adapter", tmp_path / "pieces")
    assert len(pieces) == 3  # 1,600 bytes a tensor
    adapter_pieces.unpack(tmp_path / "pieces", tmp_path / "again")
    found = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name].bfloat16().float()) for name in tensors)
    assert (tmp_path / "again" / "adapter_config.json").read_text() == '{\n  "r": 8\n}'


def curve_of(accuracies, tokens):
    return [
        {"step": float(10 * i), "seconds": 5.0 * i, "accuracy": a, "tokens": tokens * i}
        for i, a in enumerate(accuracies, 1)
    ]


def test_tokens_are_compared_at_equal_smoothed_accuracy():
    found = saved(curve_of([0.1, 0.3, 0.5, 0.6], 60.0), curve_of([0.1, 0.2, 0.3, 0.4], 100.0))
    assert found["accuracy"] == pytest.approx(0.3)
    assert found["with_history"]["tokens"] == 180.0  # the mean of 0.1, 0.3 and 0.5
    assert found["plain"]["tokens"] == 400.0
    assert found["tokens_ratio"] == pytest.approx(0.45)
    assert saved(curve_of([0.1, 0.1, 0.1], 1.0), curve_of([0.1, 0.2, 0.3], 1.0))["tokens_ratio"] is None


def test_time_to_the_last_accuracy_of_the_other():
    found = beside({"curve": [{"step": 9, "seconds": 60.0, "accuracy": 0.3}]}, curve_of([0.1, 0.3], 1.0))
    assert found["seconds_ratio"] == pytest.approx(10.0 / 60.0)
    assert beside({"curve": [{"step": 9, "seconds": 60.0, "accuracy": 0.9}]}, None)["seconds_ratio"] is None


def test_the_difference_of_a_run_is_told_once_and_is_the_reports(made_run_once, tmp_path):
    record = read_run(made_run_once)
    for name in ("gsm8k", "solutions"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": "Of another kind?"}) + "\n")
    found = run(record, tmp_path, "gsm8k")
    before, after = (record.evaluations[MAIN_SET, when] for when in ("before", "after"))
    expected = compare_evaluations(before, after)
    assert found["all"]["difference"]["value"] == pytest.approx(expected.value)
    assert found["all"]["difference"]["p_value"] == pytest.approx(expected.p_value)
    assert found["novel"] == found["all"]  # no training question is like theirs
    assert "difference" not in found


def test_tokens_of_all_steps_count():
    rows = [{"step": s, "time/step_s": 1.0, "tokens/sampled": 10.0} for s in (1.0, 2.0, 3.0)]
    rows[2]["held_out/accuracy"] = 0.5
    assert with_tokens(rows) == [{"step": 3.0, "seconds": 3.0, "accuracy": 0.5, "tokens": 30.0}]


@pytest.mark.parametrize("which", ["short", "gsm8k"])
def test_recipes_and_script_name_the_same_files(which):
    config = load_recipe(f"smollm2_{which}")
    for name, value in fields(which, Path("runs/real_model")).items():
        section, key = name.split(".")
        assert getattr(getattr(config, section), key) == value
