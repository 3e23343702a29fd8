"""One, two and three ranks compute the same: losses, gradients, metrics, samples, states."""

import equality_cases
import pytest
import torch
from forked_ranks import run_ranks
from torch.testing import assert_close

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    equality_cases.write_model(folder)
    return folder


@pytest.fixture(scope="module")
def alone(model):
    """Every case in this process."""
    return equality_cases.run(model)


@pytest.fixture(scope="module", params=[2, 3])
def by_rank(request, tmp_path_factory, model, alone):
    """Every case by each of several ranks; one start serves all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(request.param, equality_cases.run_as_rank, model, folder)
    return [torch.load(folder / f"{r}-{request.param}.pt") for r in range(request.param)]


def assert_same(found, expected, where: str, **close: float) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key, value in expected.items():
            assert_same(found[key], value, f"{where}, {key}", **close)
    elif isinstance(expected, torch.Tensor):
        assert_close(found, expected, equal_nan=True, msg=lambda message: f"{where}: {message}", **close)
    elif isinstance(expected, list) and expected and isinstance(expected[0], dict):
        for number, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert_same(a, b, f"{where}, step {number}", **close)
    elif isinstance(expected, list) and expected and isinstance(expected[0], float):
        assert_same(torch.tensor(found), torch.tensor(expected), where, **close)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=close["rtol"], abs=close["atol"]), where
    else:
        assert found == expected, where


def test_a_step_of_every_algorithm(alone, by_rank):
    """Weights after an update and its metrics, though one rank has more rows than another, or none."""
    for rank, found in enumerate(by_rank):
        assert_same(found["steps"], alone["steps"], f"rank {rank}", **CLOSE)


@pytest.mark.parametrize("name", equality_cases.RUNS)
def test_metrics_samples_and_state_after_three_steps(alone, by_rank, name):
    expected = alone["runs"][name]
    if name == "dapo":
        assert max(len(groups) for groups in expected["samples"]) > 5  # some were refilled
    for rank, found in enumerate(by_rank):
        assert_same(found["runs"][name], expected, f"rank {rank}", **CLOSE)


@pytest.mark.parametrize("name", equality_cases.OVERLAPPED)
def test_training_while_sampling_is_the_same_step(alone, name):
    assert_same(alone["runs"][f"{name}, overlapped"], alone["runs"][name], name, **CLOSE)


def test_loss_and_gradient(alone, by_rank):
    for rank, found in enumerate(by_rank):
        assert_same(found["gradients"]["True"], alone["gradients"]["True"], f"rank {rank}", **CLOSE)
        narrow, expected = found["gradients"]["False"], alone["gradients"]["False"]
        assert narrow["gradient"].dtype == torch.float32
        for name in expected:
            error = (narrow[name] - expected[name]).norm() / expected[name].norm()
            assert error < 1e-5, f"rank {rank}, {name}: {error}"
