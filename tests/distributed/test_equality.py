"""One, two and three ranks compute the same: losses, gradients, metrics, samples, states."""

import json

import equality_cases
import pytest
from launched import Ranks
from torch.testing import assert_close

CLOSE = {"rtol": 1e-10, "atol": 1e-10}


@pytest.fixture(scope="module")
def alone():
    """Every case in this process."""
    return equality_cases.run()


@pytest.fixture(scope="module", params=[2, 3])
def by_rank(request, tmp_path_factory, alone):
    """Every case by each of several ranks: importing torch is what costs, so one start serves all of them."""
    folder = tmp_path_factory.mktemp("ranks")
    Ranks("equality_cases.py", request.param, folder).wait()
    return [json.loads((folder / f"{r}-{request.param}.json").read_text()) for r in range(request.param)]


def test_steps_of_every_algorithm(alone, by_rank):
    """Weights after an update and its metrics, though one rank has more rows than another, or none."""
    for rank, found in enumerate(by_rank):
        assert found.keys() == alone.keys()
        for name, case in alone.items():
            for key, expected in case.items():
                where = f"rank {rank}, {name}, {key}"
                assert_close(found[name][key], expected, **CLOSE, msg=lambda m, w=where: f"{w}: {m}")
