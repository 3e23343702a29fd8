"""The embedded engine against transformers' generate, a teacher-forced forward and exact distributions."""

from collections import Counter
from types import SimpleNamespace

import peft
import pytest
import torch
import transformers
from frequencies import chi_square_p
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from mathrl.errors import UserError
from mathrl.policy.cpu import folding, shared_prompt
from mathrl.rollout import decoding
from mathrl.rollout.base import eos_ids
from mathrl.rollout.transformers import TransformersEngine
from mathrl.types import Adapter, Group, Problem, Sampling

VOCAB, PAD, EOS = 41, 0, 1
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.35,  # wide enough for attention to decide the likeliest token
    "pad_token_id": PAD,
    "bos_token_id": None,
    "eos_token_id": EOS,
}
FAMILIES = {
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE)),
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SHAPE, tie_word_embeddings=True)
    ),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**SHAPE, head_dim=16)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(  # learned positions
        transformers.GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3
        )
    ),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SHAPE, sliding_window=6)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(  # sliding windows and soft caps
        transformers.Gemma2Config(**SHAPE, head_dim=8, sliding_window=6, attn_logit_softcapping=1.0)
    ),
}
PLAIN = {"mistral", "gemma2"}


def build(family: str = "qwen2", seed: int = 0) -> transformers.PreTrainedModel:
    torch.manual_seed(seed)
    model = FAMILIES[family]().eval()
    model.generation_config.eos_token_id = EOS
    model.generation_config.pad_token_id = PAD
    return model


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    words = Tokenizer(
        WordLevel({"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCAB)}, unk_token="w2")
    )
    words.pre_tokenizer = WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


PROMPTS = {f"p{i}": tuple(2 + (7 * i + 3 * j) % 39 for j in range(n)) for i, n in enumerate((3, 9, 1, 6))}


def problems(*names: str) -> list[Problem]:
    return [Problem(name, "", "") for name in names or PROMPTS]


def make_engine(model, tokenizer, **sampling) -> TransformersEngine:
    defaults = {"max_completion_tokens": 12, "temperature": 2.0}
    return TransformersEngine(model, tokenizer, lambda p: PROMPTS[p.id], Sampling(**(defaults | sampling)))


def with_adapter(model, seed: int = 1, **options):
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    wrapped = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.3, generator=generator)
    return wrapped


def token_ids(groups: list[Group]) -> list[list[tuple[int, ...]]]:
    return [[c.token_ids for c in group.completions] for group in groups]


def assert_logprobs(completion, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(completion.sampling_logprobs), expected, atol=2e-4, rtol=0)


def forced_logprobs(model, group: Group, temperature: float = 2.0) -> list[torch.Tensor]:
    """Logprobs of each completion by one forward over prompt and completion, no cache."""
    result = []
    for completion in group.completions:
        ids = torch.tensor([group.prompt_ids + completion.token_ids])
        with torch.no_grad():
            logprobs = (model(input_ids=ids).logits[0].float() / temperature).log_softmax(-1)
        start = len(group.prompt_ids) - 1
        chosen = torch.tensor(completion.token_ids)[:, None]
        result.append(logprobs[start:-1].gather(1, chosen)[:, 0])
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(family, tokenizer):
    model = build(family)
    engine = make_engine(model, tokenizer, temperature=0.0)
    groups = engine.sample(problems(), 3)
    assert engine._shares_prompts is (family not in PLAIN)
    for group in groups:
        prompt = torch.tensor([group.prompt_ids])
        expected = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            use_cache=False,
        )
        for completion in group.completions:
            assert list(completion.token_ids) == expected[0, prompt.shape[1] :].tolist()
    assert len({group.completions[0].token_ids for group in groups}) > 1


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_logprobs_equal_a_forced_forward(family, tokenizer):
    model = build(family)
    groups = make_engine(model, tokenizer, temperature=3.0).sample(problems(), 24, seed=5)
    lengths = {len(c.token_ids) for g in groups for c in g.completions}
    assert len(lengths) > 3, "rows must leave the batch at different steps for this test to see their order"
    for group in groups:
        for completion, expected in zip(group.completions, forced_logprobs(model, group, 3.0), strict=True):
            torch.testing.assert_close(
                torch.tensor(completion.sampling_logprobs), expected, atol=2e-4, rtol=0
            )


def test_both_decoders_give_the_same_completions(tokenizer):
    model = build()
    shared, plain = make_engine(model, tokenizer), make_engine(model, tokenizer)
    plain._shares_prompts = False
    ours, theirs = shared.sample(problems(), 16, seed=3), plain.sample(problems(), 16, seed=3)
    assert token_ids(ours) == token_ids(theirs)


@pytest.mark.parametrize("family", ["qwen2", "mistral"])
def test_a_completion_does_not_depend_on_its_neighbours(family, tokenizer):
    model = build(family)
    together = make_engine(model, tokenizer).sample(problems(), 6, seed=11)
    reordered = make_engine(model, tokenizer).sample(problems(*reversed(PROMPTS)), 6, seed=11)[::-1]
    fewer = make_engine(model, tokenizer).sample(problems(), 2, seed=11)
    one_by_one = make_engine(model, tokenizer)
    one_by_one.max_rows = 1
    alone = one_by_one.sample(problems(), 6, seed=11)
    assert token_ids(together) == token_ids(reordered) == token_ids(alone)
    assert [ids[:2] for ids in token_ids(together)] == token_ids(fewer)
    other = make_engine(model, tokenizer).sample(problems(), 6, seed=12)
    assert token_ids(other)[0] != token_ids(together)[0]


def test_the_adapter_is_sampled_and_the_weights_stay(tokenizer):
    wrapped = with_adapter(build(), lora_dropout=0.5)
    wrapped.train()
    before = {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}
    engine = make_engine(wrapped, tokenizer)
    engine.load(Adapter({}, {}), version=7)
    groups = engine.sample(problems(), 4, seed=2)
    assert wrapped.training
    after = wrapped.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {group.policy_version for group in groups} == {7}
    wrapped.eval()
    for group in groups:
        for completion, expected in zip(group.completions, forced_logprobs(wrapped, group), strict=True):
            torch.testing.assert_close(
                torch.tensor(completion.sampling_logprobs), expected, atol=2e-4, rtol=0
            )


def test_the_reference_is_the_model_without_its_adapter(tokenizer):
    wrapped, bare = with_adapter(build()), build()
    engine = make_engine(wrapped, tokenizer)
    engine.load(None, version=0)
    reference = engine.sample(problems(), 4, seed=2)
    expected = make_engine(bare, tokenizer).sample(problems(), 4, seed=2)
    assert token_ids(reference) == token_ids(expected)
    engine.load(Adapter({}, {}), version=1)
    assert token_ids(engine.sample(problems(), 4, seed=2)) != token_ids(expected)


def test_variants_of_lora_are_sampled_unfolded(tokenizer):
    wrapped = with_adapter(build(), use_dora=True)
    with folding.folded_adapter(wrapped) as folded:
        assert not folded
    for group in make_engine(wrapped, tokenizer).sample(problems(), 2, seed=2):
        for completion, expected in zip(group.completions, forced_logprobs(wrapped, group), strict=True):
            torch.testing.assert_close(
                torch.tensor(completion.sampling_logprobs), expected, atol=2e-4, rtol=0
            )


def test_half_precision_weights_are_never_folded():
    with folding.folded_adapter(with_adapter(build().bfloat16())) as folded:
        assert not folded
    with folding.folded_adapter(with_adapter(build())) as folded:
        assert folded


def test_eos_and_the_limit_end_a_completion(tokenizer):
    model = build()
    groups = make_engine(model, tokenizer).sample(problems(), 32, seed=0)
    reasons = Counter(c.finish_reason for g in groups for c in g.completions)
    assert reasons["stop"] > 5
    assert reasons["length"] > 5
    for completion in (c for g in groups for c in g.completions):
        assert EOS not in completion.token_ids[:-1]
        assert (completion.token_ids[-1] == EOS) == (completion.finish_reason == "stop")
        assert completion.finish_reason == "stop" or len(completion.token_ids) == 12
        assert len(completion.sampling_logprobs) == len(completion.token_ids)
        words = [f"w{i}" for i in completion.token_ids if i not in (PAD, EOS)]
        assert completion.text.split() == words


def test_every_eos_id_ends_a_completion(tokenizer):
    """Chat models have several: the tokenizer's and those of the generation settings."""
    model, others = build(), [4, 7]
    assert eos_ids(model, tokenizer) == [EOS]
    model.generation_config.eos_token_id = others
    assert eos_ids(model, tokenizer) == sorted([EOS, *others])
    ended = set()
    for group in make_engine(model, tokenizer).sample(problems(), 32, seed=0):
        for completion in group.completions:
            *before, last = completion.token_ids
            assert not set(before) & {EOS, *others}
            assert (last in {EOS, *others}) == (completion.finish_reason == "stop")
            ended.add(last)
    assert {EOS, *others} <= ended
    model.generation_config.eos_token_id = None
    tokenizer_without = SimpleNamespace(eos_token_id=None)
    with pytest.raises(UserError, match="names no EOS token"):
        eos_ids(model, tokenizer_without)


def test_eos_as_first_token_and_a_limit_of_one(tokenizer):
    model = build()
    with torch.no_grad():  # every hidden state of a final norm points to EOS
        model.lm_head.weight = torch.nn.Parameter(torch.zeros(VOCAB, 32))
        model.lm_head.bias = torch.nn.Parameter(torch.where(torch.arange(VOCAB) == EOS, 50.0, 0.0))
    group = make_engine(model, tokenizer).sample(problems("p0"), 2)[0]
    assert [(c.token_ids, c.text, c.finish_reason) for c in group.completions] == [((EOS,), "", "stop")] * 2
    limited = make_engine(build(), tokenizer, max_completion_tokens=1).sample(problems(), 4, seed=1)
    assert {len(c.token_ids) for g in limited for c in g.completions} == {1}


def test_completions_are_reported_once_as_they_finish(tokenizer):
    seen: dict[tuple[int, int], object] = {}
    lengths = []

    def note(problem: int, index: int, completion) -> None:
        assert (problem, index) not in seen
        seen[problem, index] = completion
        lengths.append(len(completion.token_ids))

    engine = make_engine(build(), tokenizer)
    groups = engine.sample(problems(), 5, seed=4, on_completion=note)
    assert seen == {(p, i): c for p, g in enumerate(groups) for i, c in enumerate(g.completions)}
    assert lengths == sorted(lengths), "a short completion is reported before a long one has finished"
    seen.clear()
    engine.max_rows = 5  # one problem a batch: indices still count over all problems
    assert token_ids(engine.sample(problems(), 5, seed=4, on_completion=note)) == token_ids(groups)
    assert len(seen) == 20


def test_tokens_under_way_are_told_at_every_step(tokenizer):
    told: list[int] = []
    engine = make_engine(build(), tokenizer)
    engine.on_tokens = told.append
    groups = engine.sample(problems(), 5, seed=4)
    lengths = [len(completion.token_ids) for group in groups for completion in group.completions]
    assert told == [step * sum(n >= step for n in lengths) for step in range(1, max(lengths) + 1)]


def test_prompts_beyond_the_context_are_refused(tokenizer):
    engine = make_engine(build(), tokenizer, max_completion_tokens=60)
    with pytest.raises(
        UserError, match=r"problem 'p1': a prompt of 9 tokens .* exceed the engine's 64 tokens"
    ):
        engine.sample(problems(), 2)
    empty = TransformersEngine(build(), tokenizer, lambda p: (), Sampling())
    with pytest.raises(UserError, match="empty prompt"):
        empty.sample(problems("p0"), 1)


def test_sampled_tokens_follow_the_models_distribution(tokenizer):
    """First tokens of 4,000 completions against the forward's probabilities, by chi-square."""
    model = build()
    group = make_engine(model, tokenizer, max_completion_tokens=1).sample(problems("p1"), 4000, seed=9)[0]
    with torch.no_grad():
        exact = (model(torch.tensor([group.prompt_ids])).logits[0, -1].double() / 2.0).softmax(-1)
    assert chi_square_p(Counter(c.token_ids[0] for c in group.completions), exact) > 0.01


def test_prompts_of_finished_problems_leave_the_memory(tokenizer):
    """The rows of one problem go on after those of three others: its prompt alone stays, its logits hold."""
    model = build()
    prompts = [PROMPTS[name] for name in PROMPTS]
    with torch.no_grad():
        cache, mask, _ = decoding.prefill(model, prompts, PAD)
        way = decoding.SharedPromptDecoder(model, cache, mask, 2, max_tokens=4)
        start = mask.sum(1).repeat_interleave(2)
        way.step(torch.arange(2, 10), start)
        way.keep(torch.tensor([2, 3]), torch.tensor([0, 1]))
        assert len(way.cache.prompt_keys[0]) == 1
        logits = way.step(torch.tensor([20, 21]), start[2:4] + 1)
        for row, (first, second) in enumerate([(4, 20), (5, 21)]):
            forced = model(torch.tensor([[*prompts[1], first, second]])).logits[0, -1]
            torch.testing.assert_close(logits[row], forced, atol=1e-4, rtol=1e-4)


def test_unknown_terms_of_attention_are_refused_not_ignored():
    module = torch.nn.Module()
    query = torch.zeros(1, 1, 1, 2)
    with pytest.raises(NotImplementedError, match="softcap"):
        shared_prompt.shared_prompt_attention(module, query, query, query, None, softcap=3.0)
