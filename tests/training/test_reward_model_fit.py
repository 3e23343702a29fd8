"""The stage that trains: it learns a rule, keeps the best weights, and goes on exactly where it stopped."""

import itertools

import pytest
import torch
from reward_model_case import SIZES, config_of

from mathrl.errors import NonFiniteError, UserError
from mathrl.policy.scratch import build_base
from mathrl.rewards.learned import conversation, load_reward_model
from mathrl.run.checkpoint import CheckpointStore
from mathrl.training.reward_model_data import Pair, PairSets, encode_pairs
from mathrl.training.reward_model_files import RewardModel
from mathrl.training.reward_model_fit import RewardModelFit, share_ranked
from mathrl.training.reward_model_loss import PairScores


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    model, tokenizer = build_base(SIZES, seed=0)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data.mul_(6)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_fit(base, **own):
    """Pairs whose better answer ends in an even number."""
    settings = {"batch_pairs": 8, "num_epochs": 3, "learning_rate": 0.02, "eval_every_steps": 5} | own
    config = config_of(reward_model=settings, lora={"rank": 4, "alpha": 8.0})
    model = RewardModel.from_base(base, config)
    pairs = []
    for i, (a, b) in enumerate(itertools.product(range(0, 20, 2), range(1, 20, 2))):
        question, better = conversation(f"Number {i}?", f" {a}")
        pairs.append(Pair((question,), (better,), (conversation("", f" {b}")[1],)))
    encoded = encode_pairs(model.tokenizer, pairs, 128, skip=False)
    return RewardModelFit(config, model, PairSets(tuple(encoded[20:]), tuple(encoded[:20])))


def run(fit, until=None):
    rows = []
    fit.run(
        lambda done, metrics, improved: rows.append((metrics, improved)),
        lambda: until is not None and fit.steps_done >= until,
    )
    return rows


def test_a_rule_is_learned_from_a_head_of_zeros(base):
    fit = make_fit(base)
    assert float(fit.scores(fit.pairs.held_out).abs().max()) == 0.0
    rows = run(fit)
    assert len(rows) == fit.num_steps == 30
    assert rows[0][0]["ranking/loss"] == pytest.approx(0.6931, abs=1e-4)  # log 2: all scores are equal
    assert fit.best.accuracy > 0.9
    assert rows[-1][0]["ranking/learning_rate"] < 1e-3 * 0.02 * 30
    looks = [m["ranking/held_out_loss"] for m, _ in rows if "ranking/held_out_loss" in m]
    assert len(looks) == 6
    assert fit.best.loss == min(looks)
    fit.use_best()
    loss, scores = fit.loss.evaluate(fit.pairs.held_out)
    assert loss == pytest.approx(fit.best.loss)
    assert share_ranked(scores) == fit.best.accuracy


def test_an_interrupted_run_ends_as_the_whole_one(base, tmp_path):
    whole = make_fit(base)
    run(whole)
    first = make_fit(base)
    run(first, until=13)
    store = CheckpointStore(tmp_path, 1)
    store.save(first.steps_done, {"fit": first.state()})
    torch.manual_seed(5)  # another process has other generators
    again = make_fit(base)
    again.restore(store.load(store.latest())["fit"])
    assert again.steps_done == 13
    run(again)
    assert again.best == whole.best
    for name, tensor in whole.model.state().items():
        assert torch.equal(tensor, again.model.state()[name]), name
    for name, tensor in whole.best_weights.items():
        assert torch.equal(tensor, again.best_weights[name]), name


def test_seeds_decide_and_nothing_else(base):
    first, second = make_fit(base), make_fit(base)
    run(first, until=3)
    torch.manual_seed(9)
    run(second, until=3)
    assert all(torch.equal(a, second.model.state()[n]) for n, a in first.model.state().items())


def test_a_loss_that_is_not_finite_changes_nothing(base):
    fit = make_fit(base)
    fit.model.head.data.fill_(float("nan"))
    before = fit.model.state()
    with pytest.raises(NonFiniteError, match=r"not finite at step 1: lower reward_model\.learning_rate"):
        fit.step()
    after = fit.model.state()
    assert all(torch.equal(a.nan_to_num(), after[n].nan_to_num()) for n, a in before.items())


def test_a_step_that_does_not_fit_in_memory_is_done_in_smaller_parts(base, monkeypatch, caplog):
    whole, fit = make_fit(base), make_fit(base)
    run(whole, until=1)
    room, scored = 60, PairScores.__call__

    def in_little_memory(self, pairs):
        if sum(pair.num_tokens for pair in pairs) > room:
            raise torch.OutOfMemoryError("planted")
        return scored(self, pairs)

    monkeypatch.setattr(PairScores, "__call__", in_little_memory)
    run(fit, until=1)
    assert fit.loss.max_tokens <= room
    assert f"going on with update.micro_batch_tokens {fit.loss.max_tokens}" in caplog.text
    for name, tensor in whole.model.state().items():
        assert torch.allclose(tensor, fit.model.state()[name], rtol=1e-4, atol=1e-5), name
    room = 4
    with pytest.raises(UserError, match=r"a single pair of \d+ tokens does not fit"):
        fit.step()


def test_equal_scores_count_half():
    assert share_ranked(torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [2.0, 1.0]])) == 0.625


def test_what_is_no_base_is_told_in_a_sentence(base, tmp_path):
    with pytest.raises(UserError, match="lora.targets names 'nothing', which fits no linear layer"):
        RewardModel.from_base(base, config_of(lora={"targets": "nothing"}))
    with pytest.raises(UserError, match="lora.targets names 'score'"):
        RewardModel.from_base(base, config_of(lora={"targets": "q_proj,score"}))
    model, tokenizer = build_base(SIZES, seed=0)
    model.resize_token_embeddings(len(tokenizer) - 3)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has \d+ tokens but the model embeds \d+"):
        RewardModel.from_base(str(tmp_path), config_of())


def without_pad_token(folder, *, ends=True):
    """A base whose tokenizer has no pad token, and no end token either unless ``ends``."""
    model, tokenizer = build_base(SIZES, seed=0)
    tokenizer.pad_token = None
    if not ends:
        tokenizer.eos_token = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(tmp_path):
    model = RewardModel.from_base(without_pad_token(tmp_path / "base"), config_of())
    with torch.no_grad():
        model.head.normal_()
    model.save(tmp_path / "checkpoint", tmp_path / "adapter", [])
    texts = [conversation("1 + 1?", answer) for answer in (" 1 + 1 is two, so 2", " 2", " two")]
    scores = [
        PairScores(model.classifier, model.head)(encode_one(model, text))[0, 0].item() for text in texts
    ]
    for folder in ("checkpoint", "adapter"):
        saved = load_reward_model(str(tmp_path / folder), "x")
        assert saved.score(texts) == pytest.approx(scores, rel=1e-5, abs=1e-5)
        assert [saved.score([text])[0] for text in texts] == pytest.approx(scores, rel=1e-5, abs=1e-5)


def encode_one(model, text):
    """A pair whose chosen side is the text."""
    question, answer = text
    other = Pair((question,), (answer,), (conversation("", " another answer")[1],))
    return encode_pairs(model.tokenizer, [other], 128, skip=False)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no eos_token"):
        RewardModel.from_base(without_pad_token(tmp_path, ends=False), config_of())
