"""What ranks compare of their adapters, and what is told of the worst of them."""

import pytest
import torch

from mathrl.training import sharing
from mathrl.training.sharing import DivergedError, adapter_hash, agree_on_adapter, worst
from mathrl.types import Adapter


def adapter(**changes) -> Adapter:
    tensors = {"a": torch.arange(4.0).reshape(2, 2), "b": torch.zeros(3)} | changes
    return Adapter({}, tensors)


def test_a_hash_changes_with_any_bit_and_with_nothing_else() -> None:
    known = adapter_hash(adapter())
    assert known == adapter_hash(Adapter({"r": 8}, dict(reversed(adapter().tensors.items()))))
    assert known == adapter_hash(adapter(a=torch.arange(4.0).reshape(2, 2).T.contiguous().T))
    nearly = torch.arange(4.0).reshape(2, 2).nextafter(torch.tensor(9.0))
    others = [adapter(a=nearly), adapter(b=-torch.zeros(3)), Adapter({}, {"a": adapter().tensors["a"]})]
    assert len({known, *map(adapter_hash, others)}) == 4


def test_ranks_with_other_weights_are_told_of_by_their_number(monkeypatch) -> None:
    assert agree_on_adapter(adapter(), "step 4") == {}
    monkeypatch.setattr(sharing, "world_size", lambda: 3)
    monkeypatch.setattr(sharing, "gather", lambda own: [own] * 3)
    metrics = agree_on_adapter(adapter(), "step 4")
    assert metrics == {"ranks/adapter_hash": float(adapter_hash(adapter()) % (1 << 52))}
    monkeypatch.setattr(sharing, "gather", lambda own: [own, own, own + 1])
    with pytest.raises(DivergedError, match=r"^step 4: the adapter of rank 2 "):
        agree_on_adapter(adapter(), "step 4")


def test_of_several_engines_the_worst_is_told_with_its_own_error() -> None:
    first = {"sync/gap_mean": 0.1, "sync/arrived": 0.9, "sync/arrived_error": 0.2}
    second = {"sync/gap_mean": 0.3, "sync/arrived": 0.4, "sync/arrived_error": 0.1}
    assert worst([first, second]) == {"sync/gap_mean": 0.3, "sync/arrived": 0.4, "sync/arrived_error": 0.1}
    assert worst([{"sync/gap_mean": 0.1}]) == {"sync/gap_mean": 0.1}
