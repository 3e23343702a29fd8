"""The supervised stage and evaluations on two ranks: what one process makes, and one console."""

import json

import pytest
from forked_ranks import ForkedRanks
from safetensors.torch import load_file
from torch.testing import assert_close

from mathrl.cli import main
from mathrl.evaluation.completions import read_evaluation


def test_a_supervised_stage(supervised, five_steps, tmp_path):
    ranks = ForkedRanks([*five_steps, "--run.output_dir", "runs"], tmp_path)
    assert ranks.wait() == [0, 0], ranks.told
    assert ranks.logs[1].read_text() == ""
    assert "SFT 5/5" in ranks.logs[0].read_text()
    found = tmp_path / "home0" / "runs" / "tiny"
    rows, expected = (
        [json.loads(line) for line in (run / "sft_metrics.jsonl").read_text().splitlines()]
        for run in (found, supervised)
    )
    assert len(rows) == len(expected) > 0
    for row, other in zip(rows, expected, strict=True):
        numbers = {k: v for k, v in other.items() if not k.startswith(("time/", "sft/tokens_per_s"))}
        assert {k: row[k] for k in numbers} == pytest.approx(numbers, rel=1e-3)
    weights, others = (load_file(run / "reference" / "model.safetensors") for run in (found, supervised))
    for name, tensor in others.items():
        assert_close(weights[name], tensor, rtol=1e-3, atol=1e-4)


def test_an_evaluation(supervised, tmp_path, monkeypatch):
    """Of seven problems, so that the ranks' shares differ."""
    data = tmp_path / "test.jsonl"
    rows = [
        {"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}\n#### {2 * n}"} for n in range(7)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["eval", str(supervised / "reference"), "--benchmark", "gsm8k", "--data", str(data)]
    words += ["--samples", "2", "--max-completion-tokens", "12", "--out", "out"]
    ranks = ForkedRanks(words, tmp_path)
    assert ranks.wait() == [0, 0], ranks.told
    assert ranks.logs[1].read_text() == ""
    assert "gsm8k" in ranks.logs[0].read_text()
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    found, expected = (read_evaluation(home / "out" / "gsm8k") for home in (tmp_path / "home0", tmp_path))
    assert found.protocol == expected.protocol
    assert found.records == expected.records
    assert len(found.records) == 7
