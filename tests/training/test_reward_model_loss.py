"""The packed Bradley–Terry loss: against float64 one text at a time, whatever stands beside a text."""

import math

import pytest
import torch
from reward_model_case import PAIRS, encoded, make_reward_model

from mathrl.training.reward_model_loss import PairScores, RankingLoss, bradley_terry


def loss_of(model, max_tokens=4096, center_coef=0.01):
    return RankingLoss(PairScores(model.classifier, model.head), center_coef, max_tokens)


def gradients(model):
    found = [p.grad.clone() for p in model.parameters]
    for parameter in model.parameters:
        parameter.grad = None
    return found


def by_hand(model, pairs, center_coef=0.01):
    """Loss and gradients in float64, a forward a text, without packing, padding or a batch."""
    scores = []
    for pair in pairs:
        row = []
        for ids in (pair.chosen_ids, pair.rejected_ids):
            out = model.classifier.model(input_ids=torch.tensor([ids]), use_cache=False)
            row.append(out.last_hidden_state[0, -1] @ model.head[0])
        scores.append(torch.stack(row))
    losses = [
        -torch.log(torch.sigmoid(s[0] - s[1] - p.pair.margin)) + center_coef * (s[0] + s[1]) ** 2
        for s, p in zip(scores, pairs, strict=True)
    ]
    loss = torch.stack(losses).mean()
    loss.backward()
    return loss.item(), torch.stack(scores).detach()


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "mistral"])  # the last one by padded rows
def test_loss_and_gradients_are_those_of_float64_one_text_at_a_time(architecture):
    pairs = encoded()
    exact = make_reward_model(architecture, torch.float64)
    loss, scores = by_hand(exact, pairs)
    wanted = gradients(exact)
    assert scores.std() > 0.1
    # transformers' norms compute in float32 whatever the type, which leaves 1e-8 of float64
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-6)):
        model = make_reward_model(architecture, dtype)
        got, given = loss_of(model).backward(pairs)
        assert got == pytest.approx(loss, rel=tolerance)
        assert torch.allclose(given.double(), scores, rtol=0, atol=10 * tolerance)
        found = gradients(model)
        gap = sum(float((a.double() - b).square().sum()) for a, b in zip(found, wanted, strict=True)) ** 0.5
        norm = sum(float(b.square().sum()) for b in wanted) ** 0.5
        assert gap <= tolerance * norm


def test_how_a_step_is_cut_changes_nothing():
    pairs = encoded()
    model = make_reward_model(dtype=torch.float64)
    whole, scores = loss_of(model).backward(pairs)
    wanted = gradients(model)
    cut, parts = loss_of(model, max_tokens=40).backward(pairs)
    assert cut == pytest.approx(whole, rel=1e-12)
    assert torch.allclose(parts, scores, rtol=0, atol=1e-12)
    for a, b in zip(gradients(model), wanted, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_a_score_does_not_depend_on_its_neighbours():
    pairs = encoded()
    model = make_reward_model()
    together = loss_of(model).evaluate(pairs)[1]
    backwards = loss_of(model).evaluate(pairs[::-1])[1].flip(0)
    alone = torch.cat([loss_of(model).evaluate([pair])[1] for pair in pairs])
    assert torch.allclose(together, alone, rtol=1e-6, atol=1e-6)
    assert torch.allclose(together, backwards, rtol=1e-6, atol=1e-6)


def test_scores_are_what_transformers_gives_the_texts():
    """Padded in one batch, on either side: the classifier reads the last token that is not padding."""
    pairs = encoded()
    model = make_reward_model()
    scores = loss_of(model).evaluate(pairs)[1]
    texts = [ids for p in pairs for ids in (p.chosen_ids, p.rejected_ids)]
    for side in ("right", "left"):
        inputs = model.tokenizer.pad(
            {"input_ids": [list(t) for t in texts]}, padding_side=side, return_tensors="pt"
        )
        with torch.no_grad():
            given = model.classifier(**inputs).logits.view(-1, 2)
        assert torch.allclose(given, scores, rtol=1e-5, atol=1e-5)


def test_bradley_terry_by_numbers():
    scores = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, -1.0]], dtype=torch.float64)
    margins = torch.tensor([0.0, 0.0, 0.5], dtype=torch.float64)
    plain = bradley_terry(scores, margins, 0.0)
    expected = [math.log(2), math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1.5))]
    assert plain.tolist() == pytest.approx(expected)
    centred = bradley_terry(scores, margins, 0.1) - plain
    assert centred.tolist() == pytest.approx([0.0, 0.4, 0.0])  # 0.1 (sum of the pair's scores)²
    shifted = bradley_terry(scores + 3, margins, 0.0)
    assert torch.allclose(shifted, plain)


def test_what_both_sides_begin_with_is_computed_once():
    pairs = encoded()
    assert [p.num_shared for p in pairs] == [
        next(
            (i for i, (a, b) in enumerate(zip(p.chosen_ids, p.rejected_ids, strict=False)) if a != b),
            min(len(p.chosen_ids), len(p.rejected_ids)),
        )
        for p in pairs
    ]
    assert pairs[4].num_shared == len(pairs[4].chosen_ids)  # " 7" is how " 7 or 8" begins
    assert all(p.num_shared > 10 for p in pairs)
    assert [p.pair for p in pairs] == PAIRS
