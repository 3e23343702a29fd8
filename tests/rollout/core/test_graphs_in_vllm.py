"""Where graphs are put into vLLM's runner, and which steps stay its own."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mathrl.rollout.core import graphs_in_vllm


class VllmsRunner:
    """What is changed: vLLM's own steps say so."""

    def execute_model(
        self, scheduler_output: Any, intermediate_tensors: Any = None, dummy_run: bool = False
    ) -> str:
        return "vLLM's"

    def sample_tokens(self, grammar_output: Any) -> str:
        return "vLLM's tokens"


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A process of a vLLM of a version that has been tried."""
    kind = type("GPUModelRunner", (VllmsRunner,), {})
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.26.0"))
    monkeypatch.setitem(sys.modules, "vllm.v1.worker.gpu.model_runner", SimpleNamespace(GPUModelRunner=kind))
    return kind


def test_vllms_runner_is_asked_where_graphs_have_not_made_the_step(
    vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs_in_vllm.use_decode_graphs()
    runner, forgotten = vllm(), []
    graphs = SimpleNamespace(
        execute=lambda scheduled: scheduled.steady == "known",
        sample=lambda: "tokens of a graph",
        forget=lambda: forgotten.append(1),
    )
    monkeypatch.setattr(graphs_in_vllm, "_graphs_for", lambda runner: graphs)
    assert runner.sample_tokens(None) == "vLLM's tokens"  # nothing has been begun here
    assert runner.execute_model(SimpleNamespace(), dummy_run=True) == "vLLM's"
    runner.decode_graphs = graphs
    assert runner.execute_model(SimpleNamespace(steady="known"), None) is None
    assert runner.sample_tokens(None) == "tokens of a graph"
    assert not forgotten
    assert runner.execute_model(SimpleNamespace(steady="unknown"), None) == "vLLM's"
    assert runner.execute_model(SimpleNamespace(), None) == "vLLM's"
    assert runner.execute_model(SimpleNamespace(steady="known"), dummy_run=True) == "vLLM's"
    assert len(forgotten) == 3
    graphs.sample = lambda: None
    assert runner.sample_tokens(None) == "vLLM's tokens"


@pytest.mark.parametrize("what", ["another version", "switched off", "another runner"])
def test_what_has_not_been_tried_stays_vllms(vllm: Any, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if what == "another version":
        monkeypatch.setattr(sys.modules["vllm"], "__version__", "0.31.2")
    if what == "switched off":
        monkeypatch.setenv(graphs_in_vllm.SWITCH, "0")
    graphs_in_vllm.use_decode_graphs()
    runner = vllm()
    assert (
        runner.execute_model(SimpleNamespace(steady=SimpleNamespace(ids=["a"], others={})), None) == "vLLM's"
    )
    if what == "another runner":  # it has nothing of what is looked for
        assert runner.decode_graphs is None
    else:
        assert vllm.execute_model is VllmsRunner.execute_model
