"""How a server is reached, and how many requests it is given at once; no server is needed."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest

from mathrl.cli import main
from mathrl.rollout import endpoint
from mathrl.rollout.endpoint import EndpointEngine, Server
from mathrl.types import Problem, Sampling


@pytest.mark.parametrize(
    "url", ["http://host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/"]
)
def test_an_address_is_taken_with_v1_or_without(url, monkeypatch):
    asked = []

    def get(address, **more):
        asked.append(address)
        return SimpleNamespace(status_code=200, json=lambda: {"data": [{"id": "m", "max_model_len": 64}]})

    monkeypatch.setattr(endpoint.httpx, "get", get)
    server = Server(url)
    assert (server.url, asked) == ("http://host:8000/v1", ["http://host:8000/v1/models"])
    assert (server.model, server.context) == ("m", 64)


@pytest.mark.parametrize(
    ("context", "words", "said"),
    [
        (
            64,
            ["--max-completion-tokens", "64"],
            "completions of 64 tokens (--max-completion-tokens) leave no",
        ),
        (300, [], "completions of 512 tokens (usual for gsm8k) leave no room"),
    ],
)
def test_a_limit_that_leaves_no_room_for_prompts_by_chat_turns_is_told(
    context, words, said, tmp_path, monkeypatch, capsys
):
    answer = SimpleNamespace(status_code=200, json=lambda: {"data": [{"id": "m", "max_model_len": context}]})
    monkeypatch.setattr(endpoint.httpx, "get", lambda *_, **__: answer)
    data = tmp_path / "test.jsonl"
    data.write_text('{"question": "What is 1 plus 1?", "answer": "#### 2"}\n')
    asked = ["eval", "--endpoint", "http://host:8000", "--benchmark", "gsm8k", "--data", f"gsm8k={data}"]
    assert main([*asked, "--out", str(tmp_path / "out"), *words]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert f"in the context of {context} tokens that the server gives the model: set --max-compl" in told
    assert "--tokenizer" in told
    assert " 0 " not in told


def test_no_more_requests_are_under_way_than_asked_for(monkeypatch):
    under_way, most = 0, 0

    async def post(self, client, problem, body):
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return {
            "choices": [{"text": problem.id, "finish_reason": "length"}],
            "usage": {"completion_tokens": 3},
        }

    monkeypatch.setattr(EndpointEngine, "_post", post)
    server = SimpleNamespace(url="http://host/v1", headers={}, timeout=httpx.Timeout(5.0), model="m")
    engine = EndpointEngine(server, lambda problem: (1, 2), Sampling(), concurrency=3)
    groups = engine.sample([Problem(name, "q", "1") for name in "abc"], 4)
    assert most == 3
    assert [[c.text for c in g.completions] for g in groups] == [[name] * 4 for name in "abc"]
    assert {(c.finish_reason, len(c.token_ids)) for g in groups for c in g.completions} == {("length", 3)}
