"""The supervised stage of a model that is there already: an adapter merged in, epochs, the best look kept."""

import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mathrl.errors import UserError
from mathrl.recipes import load_recipe
from mathrl.training.given_adapter import make_merged_reference
from mathrl.training.sft import load_examples, planned_steps, train_reference
from mathrl.training.sft_loss import Example, SftLoss

TINY = {
    "run.num_threads": "1",
    "lora.rank": "4",
    "data.num_train_problems": "60",
    "data.max_steps": "1",
    "sft.num_problems": "300",
    "sft.max_steps": "1",
    "sft.batch_tokens": "1024",
    "sft.eval_every_steps": "10",
}
SIZES = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1, "intermediate_size": 64}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "plain.toml"
    path.write_text("")
    return path


def config_with(recipe, **changes):
    changes = {name.replace("__", "."): str(value) for name, value in changes.items()}
    return load_recipe(str(recipe), list((TINY | changes).items()))


@pytest.fixture(scope="module")
def base(recipe, tmp_path_factory):
    """A model that has learnt a little; what another stage starts from."""
    out = tmp_path_factory.mktemp("base") / "model"
    sizes = {f"model__{name}": size for name, size in SIZES.items()}
    train_reference(config_with(recipe, sft__max_train_steps=20, sft__learning_rate=3e-3, **sizes), out)
    return out


def into(looks):
    """What notes the held-out losses of a stage in a list."""
    return lambda step, metrics: looks.append(metrics["sft/held_out_loss"])


def weights(folder):
    return load_file(folder / "model.safetensors")


def test_an_adapter_is_merged_into_the_reference(recipe, base, tmp_path):
    looks = {}
    config = config_with(
        recipe,
        model__path=base,
        sft__lora=True,
        sft__keep_best=True,
        sft__max_train_steps=30,
        sft__learning_rate=3e-3,
    )
    result = train_reference(
        config,
        tmp_path / "out",
        on_metrics=lambda step, m: looks.setdefault(step, m["sft/held_out_loss"]),
        adapter_dir=tmp_path / "adapter",
    )
    assert result.held_out_loss < looks[0]  # of the model as it was
    assert result.held_out_loss == pytest.approx(min(looks.values()), abs=1e-6)
    before, after = weights(base), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("_proj.weight")}
    for name in changed:
        assert torch.linalg.matrix_rank(after[name] - before[name], rtol=1e-3) <= 4
    again = config_with(recipe, model__path=base, model__adapter=tmp_path / "adapter", sft__skip=True)
    make_merged_reference(again, tmp_path / "again")
    made = weights(tmp_path / "again")
    assert all(torch.equal(after[name], made[name]) for name in after), "what is kept makes it again"


def test_how_a_step_is_cut_changes_neither_loss_nor_gradient(recipe, base):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    examples = [Example(tuple(range(3, 6 + i)), tuple(range(20, 24 + 2 * i))) for i in range(6)]
    found = []
    for most in (0, 1, 20):
        model.zero_grad()
        loss = SftLoss(model, 0.3, most_tokens=most)
        found.append([loss.backward(examples, loss.weight(examples)), *(p.grad for p in model.parameters())])
    whole = SftLoss(model, 0.3)(examples)
    torch.testing.assert_close(found[0][0], whole.detach().to(found[0][0].dtype), atol=1e-6, rtol=1e-6)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("prompt_weight", [0.0, 0.3])
def test_the_loss_is_the_weighted_mean_of_the_models_own_of_each_example(base, prompt_weight):
    """Prompts of several lengths, one of a token and none at all; the first token of all is not predicted."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    examples = [
        Example(tuple(range(3, 3 + p)), tuple(range(30, 30 + c))) for p, c in ((5, 2), (1, 4), (0, 6))
    ]
    total, weight = 0.0, 0.0
    for example in examples:
        ids = torch.tensor([(*example.prompt_ids, *example.completion_ids)])
        nll = -model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        in_prompt = torch.arange(1, ids.shape[1]) < len(example.prompt_ids)
        each = torch.where(in_prompt, prompt_weight, 1.0)
        total, weight = total + (nll * each).sum(), weight + each.sum()
    loss = SftLoss(model, prompt_weight)
    torch.testing.assert_close(loss.weight(examples).double(), weight.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(loss(examples).double(), total / weight, rtol=1e-6, atol=0)


def test_the_best_look_is_kept_even_where_it_is_the_model_itself(recipe, base, tmp_path):
    for lora in (True, False):
        config = config_with(
            recipe,
            model__path=base,
            sft__lora=lora,
            sft__keep_best=True,
            sft__max_train_steps=10,
            sft__learning_rate=5.0,
        )
        looks = []
        result = train_reference(config, tmp_path / f"{lora}", on_metrics=into(looks))
        assert result.best_step == 0
        assert looks[1] > looks[0] == pytest.approx(looks[-1], abs=1e-6)
        before, after = weights(base), weights(tmp_path / f"{lora}")
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_without_keep_best_the_last_weights_stay(recipe, base, tmp_path):
    config = config_with(recipe, model__path=base, sft__max_train_steps=10, sft__learning_rate=0.5)
    looks = []
    result = train_reference(config, tmp_path / "out", on_metrics=into(looks))
    assert len(looks) == 1  # none of the model as it was
    assert result.best_step == result.steps == 10


def test_epochs_are_steps_of_the_data_there_is(recipe, base, tmp_path):
    config = config_with(recipe, model__path=base, sft__epochs=1.5, sft__max_train_steps=1000)
    found = load_examples(config)
    tokens = sum(example.num_tokens for example in found.examples.values())
    steps = planned_steps(config.sft, found)
    assert steps == math.ceil(1.5 * tokens / 1024)
    rates = []
    result = train_reference(
        config,
        tmp_path / "out",
        demonstrations=found,
        on_metrics=lambda step, m: rates.append(m["sft/learning_rate"]),
    )
    assert result.steps == steps
    assert result.tokens == pytest.approx(1.5 * tokens, rel=0.1)
    assert rates[-1] < 0.1 * max(rates)  # the schedule ends with them
    assert planned_steps(config.sft.model_copy(update={"max_train_steps": 3}), found) == 3
    assert planned_steps(config.sft.model_copy(update={"epochs": 0.0}), found) == 1000


def test_a_model_from_nothing_learns_all_of_its_weights(recipe, tmp_path):
    with pytest.raises(UserError, match=r"sft.lora needs model.path"):
        train_reference(config_with(recipe, sft__lora=True), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("reached", "steps"), [(0.0, 30), (1.0, 10)])
def test_progress_says_what_will_run_and_what_ran(recipe, tmp_path, monkeypatch, reached, steps):
    """The steps with direct answers come on top, and an early target brings the end nearer."""
    monkeypatch.setattr(SftLoss, "held_out", lambda *_: (1.0, reached))
    config = config_with(
        recipe,
        **{f"model__{name}": size for name, size in SIZES.items()},
        sft__max_train_steps=30,
        sft__target_accuracy=0.9,
        sft__direct_answer_fraction=0.5,
        sft__direct_answer_steps=5,
    )
    told = []
    result = train_reference(config, tmp_path / "out", progress=lambda *count: told.append(count))
    assert told[: steps + 5] == [*((n, 35) for n in range(1, steps + 1)), *(
        (steps + n, steps + 5) for n in range(1, 6)
    )]  # fmt: skip
    assert told[-1] == (result.steps, result.steps) == (steps + 5, steps + 5)
