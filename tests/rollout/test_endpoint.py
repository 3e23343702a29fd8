"""A server of the OpenAI API as an engine: what is sent, what comes back, and every way it can fail."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mathrl.cli import main
from mathrl.data.prompts import MessagesTemplate, usual_instruction
from mathrl.errors import UserError
from mathrl.evaluation.completions import read_evaluation
from mathrl.rollout import endpoint
from mathrl.rollout.endpoint import EndpointEngine, Server
from mathrl.types import Completion, Problem, Sampling


class Handler(BaseHTTPRequestHandler):
    """Adds what it is asked to add; ``server.plan`` holds what it answers first, as (status, body)."""

    def do_GET(self):
        self.server.keys.append(self.headers.get("Authorization"))
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            return self._send(401, {"error": {"message": "no such key"}})
        models = [{"id": name, "max_model_len": 1024} for name in self.server.models]
        return self._send(200, {"data": models})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, body))
            status, answer = self.server.plan.pop(0) if self.server.plan else (200, None)
        if answer is not None:
            return self._send(status, answer)
        text = body.get("prompt") or body["messages"][-1]["content"]
        numbers = [int(word) for word in text.split() if word.isdigit()]
        right = body["temperature"] == 0 or body["seed"] % 2 == 0
        said = f"It is #### {sum(numbers) + (not right)}"
        choice = {"finish_reason": "stop"}
        choice |= {"message": {"content": said}} if "messages" in body else {"text": said}
        return self._send(200, {"choices": [choice], "usage": {"completion_tokens": 7}})

    def _send(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "ATTEMPTS", 3)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.models, server.key, server.keys, server.asked, server.plan = ["adder"], "", [], [], []
    server.lock = threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


PROBLEMS = [Problem(f"sums/{i}", f"What is {i} plus 2 ?", str(i + 2)) for i in range(3)]
TEMPLATE = MessagesTemplate(extract="gsm8k")


def engine_of(server, **more):
    return EndpointEngine(Server(server.url), TEMPLATE.messages, Sampling(max_completion_tokens=50), **more)


def test_requests_carry_turns_limits_and_a_seed_each(server):
    finished = []
    groups = engine_of(server, concurrency=2).sample(
        PROBLEMS, 4, Sampling(temperature=0.7, top_p=0.9, max_completion_tokens=9), seed=5,
        on_completion=lambda p, i, completion: finished.append((p, i, completion)),
    )  # fmt: skip
    bodies = [body for _, body in server.asked]
    assert {path for path, _ in server.asked} == {"/v1/chat/completions"}
    assert {(b["temperature"], b["top_p"], b["max_tokens"], b["model"]) for b in bodies} == {
        (0.7, 0.9, 9, "adder")
    }
    assert len({b["seed"] for b in bodies}) == 12
    assert all(0 <= b["seed"] < 2**31 for b in bodies)
    assert bodies[0]["messages"][0]["content"].endswith(usual_instruction("chat", "gsm8k").partition("\n")[2])
    assert len(finished) == 12
    assert all(groups[p].completions[i] == completion for p, i, completion in finished)
    assert {len(c.token_ids) for g in groups for c in g.completions} == {7}
    again = engine_of(server).sample(PROBLEMS, 4, Sampling(temperature=0.7), seed=5)
    assert [[c.text for c in g.completions] for g in again] == [
        [c.text for c in g.completions] for g in groups
    ]


def test_whole_prompts_go_as_token_ids(server):
    engine = EndpointEngine(Server(server.url), lambda problem: (1, 5, 7), Sampling())
    server.plan = [(200, {"choices": [{"text": " #### 2", "finish_reason": "length"}], "usage": None})]
    (group,) = engine.sample(PROBLEMS[:1], 1, Sampling(temperature=0.0))
    path, body = server.asked[0]
    assert (path, body["prompt"], "seed" in body) == ("/v1/completions", [1, 5, 7], False)
    assert group.completions == (Completion((0, 0), " #### 2", "length"),)


def test_half_a_character_of_a_server_can_be_written_and_read(server):
    server.plan = [(200, {"choices": [{"text": "\ud83d 2", "finish_reason": "stop"}]})]
    engine = EndpointEngine(Server(server.url), lambda problem: (1, 5, 7), Sampling())
    (group,) = engine.sample(PROBLEMS[:1], 1, Sampling(temperature=0.0))
    assert group.completions[0].text == "\ufffd 2"


def test_a_busy_server_is_asked_again_and_a_refusal_is_told(server, monkeypatch):
    monkeypatch.setattr(endpoint.asyncio, "sleep", lambda seconds: noted(seconds))
    waits = []

    async def noted(seconds):
        waits.append(seconds)

    greedy = Sampling(temperature=0.0, max_completion_tokens=9)
    server.plan = [(503, {"error": "busy"}), (429, {"error": {"message": "slow down"}})]
    (group,) = engine_of(server, concurrency=1).sample(PROBLEMS[:1], 1, greedy)
    assert group.completions[0].text == "It is #### 2"
    assert waits == [1.0, 2.0]
    server.plan = [(503, {"error": "busy"})] * 3
    with pytest.raises(UserError, match=r"did not answer 3 times \(503: busy\).*the same evaluation goes on"):
        engine_of(server, concurrency=1).sample(PROBLEMS[:1], 1, greedy)
    server.plan = [(400, {"error": {"message": "max_tokens is\n too large"}})]
    with pytest.raises(UserError, match=r"problem sums/0 \(400: max_tokens is too large\)"):
        engine_of(server, concurrency=1).sample(PROBLEMS[:1], 1, greedy)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"choices": []}, r"\{'choices': \[\]\}"),
        ({"choices": None}, "None"),
        ({"choices": [{"message": None}]}, "message"),
        ({"error": {"message": "out of\n credit"}}, r"\(out of credit\)"),
        ([], r"\[\]"),
        ("<html>", "<html>"),
    ],
)
def test_an_answer_without_a_completion_is_told_in_a_sentence(server, answer, told):
    server.plan = [(200, answer)]
    with pytest.raises(UserError, match=f"problem sums/0 with no completion .*{told}.*: check --endpoint"):
        engine_of(server).sample(PROBLEMS[:1], 1, Sampling(temperature=0.0, max_completion_tokens=9))


def test_a_server_that_cannot_be_asked_is_told_in_a_sentence(server, monkeypatch):
    with pytest.raises(UserError, match="must begin with http"):
        Server("localhost:8000")
    with pytest.raises(UserError, match="no server answers at http://127.0.0.1:9/v1 .*vllm serve"):
        Server("http://127.0.0.1:9")
    with pytest.raises(UserError, match="serves no model 'addr'.*'adder'"):
        Server(server.url, "addr")
    server.models = ["adder", "other"]
    with pytest.raises(UserError, match="serves adder, other: name one"):
        Server(server.url)
    server.key = "secret"
    with pytest.raises(UserError, match="refuses the key.*OPENAI_API_KEY"):
        Server(server.url, "adder")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert Server(f"{server.url}/v1/", "adder").context == 1024
    with pytest.raises(UserError, match="takes no adapter"):
        engine = EndpointEngine(Server(server.url, "adder"), TEMPLATE.messages, Sampling())
        engine.load(object(), 1)


def test_an_evaluation_of_a_server(server, tmp_path, capsys):
    data = tmp_path / "sums.jsonl"
    data.write_text("".join(f'{{"question": "{p.question}", "answer": "{p.answer}"}}\n' for p in PROBLEMS))
    command = ["eval", "--endpoint", server.url, "--model", "adder", "--data", str(data), "--samples", "4"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    evaluation = read_evaluation(tmp_path / "out" / "sums")
    assert evaluation.accuracy == 1.0
    assert evaluation.k == 4
    assert 0 < evaluation.mean_at_k < 1
    assert evaluation.info["endpoint"] == server.url
    assert evaluation.protocol["prompt"]["kind"] == "chat turns"
    assert (tmp_path / "out" / "eval.html").is_file()
    asked = len(server.asked)
    assert main([*command, "--out", str(tmp_path / "out")]) == 0  # nothing is asked twice
    assert len(server.asked) == asked
    shots = tmp_path / "shots.jsonl"
    shots.write_text('{"question": "What is 1 plus 1?", "answer": "2", "solution": "1 + 1 = 2"}\n')
    for words, told in (
        (["--shots", "1", "--shots-data", str(shots)], "--tokenizer"),
        (["--adapter", "x"], "a server takes no adapter"),
        (["--concurrency", "0"], "--concurrency must be >= 1"),
    ):
        assert main([*command, "--out", str(tmp_path / "bad"), *words]) == 2
        assert told in capsys.readouterr().err
    assert main(["eval", "m", "--model", "x", "--data", str(data)]) == 2
    assert "--model goes with --endpoint" in capsys.readouterr().err
