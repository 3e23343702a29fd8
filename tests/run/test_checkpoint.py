"""Checkpoints are whole, complete, rotated, and cannot run code."""

import errno
import io
import os
import random
from pathlib import Path

import numpy as np
import peft
import pytest
import torch

from mathrl.errors import UserError
from mathrl.run import checkpoint
from mathrl.run.checkpoint import CheckpointStore
from mathrl.types import Adapter


def optimizer_after(steps: int) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
    parameter = torch.nn.Parameter(torch.arange(6.0).view(2, 3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.8, 0.9))
    for i in range(steps):
        step_once(parameter, optimizer, i)
    return parameter, optimizer


def step_once(parameter, optimizer, i: int) -> None:
    optimizer.zero_grad()
    ((parameter - i) ** 2).sum().backward()
    optimizer.step()


def test_an_optimiser_goes_on_bit_for_bit(tmp_path):
    store = CheckpointStore(tmp_path / "checkpoints", 2)
    parameter, optimizer = optimizer_after(3)
    saved = {"weights": parameter.detach().clone(), "optimizer": optimizer.state_dict(), "cursor": (1, 2)}
    path = store.save(3, saved)
    step_once(parameter, optimizer, 3)

    state = store.load(path)
    fresh, other = optimizer_after(0)
    fresh.data.copy_(state["weights"])
    other.load_state_dict(state["optimizer"])
    step_once(fresh, other, 3)
    assert torch.equal(fresh, parameter)
    assert state["cursor"] == (1, 2)


def test_all_random_generators_go_on(tmp_path):
    store = CheckpointStore(tmp_path, 1)
    random.gauss(0, 1)  # leaves a second value pending, which is part of the state
    np.random.standard_normal()
    path = store.save(1, {})

    def draws() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.standard_normal(), torch.rand(1).item()]

    expected = draws()
    draws()
    store.load(path)
    assert draws() == expected


def test_an_adapter_comes_back_with_its_peft_configuration(tmp_path):
    config = peft.LoraConfig(r=3, target_modules={"q_proj", "v_proj"}, lora_dropout=0.25).to_dict()
    adapter = Adapter(config, {"a.lora_A.weight": torch.randn(3, 4)})
    store = CheckpointStore(tmp_path, 1)
    state = store.load(store.save(1, {"trainer": {"adapter": adapter, "history": [1.5, None]}}))
    found = state["trainer"]["adapter"]
    assert torch.equal(found.tensors["a.lora_A.weight"], adapter.tensors["a.lora_A.weight"])
    again = peft.LoraConfig(**found.config)
    assert (again.r, again.lora_dropout) == (3, 0.25)
    assert set(again.target_modules) == {"q_proj", "v_proj"}
    assert state["trainer"]["history"] == [1.5, None]


def test_the_last_and_the_best_stay(tmp_path):
    store = CheckpointStore(tmp_path, 2)
    assert store.latest() is None
    assert store.best() is None
    for step, best in ((10, False), (20, True), (30, False), (40, False), (50, False)):
        store.save(step, {"step": step}, best=best)
    assert store.steps() == [20, 40, 50]
    assert store.latest() == tmp_path / "step-00000050"
    assert store.best() == tmp_path / "step-00000020"
    store.save(60, {"step": 60}, best=True)
    assert store.steps() == [50, 60]
    assert CheckpointStore(tmp_path, 2).load(store.best())["step"] == 60


def test_a_step_is_saved_again_in_its_place(tmp_path):
    store = CheckpointStore(tmp_path, 2)
    store.save(5, {"value": 1}, best=True)
    assert store.load(store.save(5, {"value": 2}))["value"] == 2
    assert store.steps() == [5]
    assert store.best() == store.path(5)


def test_a_checkpoint_comes_with_its_mark_or_not_at_all(tmp_path, monkeypatch):
    """Killed as soon as the checkpoint has its name: it is the best, as its own state says."""
    store = CheckpointStore(tmp_path, 2)
    store.save(10, {"value": 1}, best=True)

    def killed(folder):
        if folder == tmp_path:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_sync", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(20, {"value": 2}, best=True)
    assert store.best() == store.latest() == store.path(20)


def test_the_best_of_a_folder_with_one_mark_for_all_is_kept(tmp_path):
    store = CheckpointStore(tmp_path, 1)
    store.save(10, {"value": 1})
    (tmp_path / "best.json").write_text('{"step": 10}')
    store.save(20, {"value": 2})
    assert (store.steps(), store.best()) == ([10, 20], store.path(10))
    store.save(30, {"value": 3}, best=True)
    assert (store.steps(), store.best()) == ([30], store.path(30))


class _FullDisk(io.BytesIO):
    def write(self, data) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_in_a_sentence_and_keeps_the_last_good_one(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, 1)
    store.save(10, {"value": 1}, best=True)
    monkeypatch.setattr(Path, "open", lambda self, *args, **kwargs: _FullDisk())
    with pytest.raises(UserError, match=r"step 20 .*the disk is full; the last good one is of step 10"):
        store.save(20, {"value": 2}, best=True)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert store.load(store.latest())["value"] == 1
    assert store.best() == store.latest()


def test_what_a_killed_process_left_is_no_checkpoint_and_is_swept(tmp_path):
    store = CheckpointStore(tmp_path, 3)
    store.save(1, {"value": 1})
    half = tmp_path / ".step-00000002.99.tmp"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    (tmp_path / "step-00000003").mkdir()  # a folder without its state
    assert store.latest() == tmp_path / "step-00000001"
    store.save(4, {"value": 4})
    assert not half.exists()


def test_killed_while_writing_nothing_appears(tmp_path, monkeypatch):
    """Whatever is interrupted before the rename, the checkpoint does not exist."""

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        CheckpointStore(tmp_path, 1).save(1, {})
    assert CheckpointStore(tmp_path, 1).steps() == []


@pytest.mark.parametrize("damage", [b"", b"garbage", None])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    store = CheckpointStore(tmp_path, 1)
    path = store.save(1, {"x": torch.zeros(1000)})
    file = path / "state.pt"
    file.write_bytes(file.read_bytes()[:2000] if damage is None else damage)
    with pytest.raises(UserError, match="is damaged"):
        store.load(path)
    with pytest.raises(UserError, match="no checkpoint"):
        store.load(tmp_path / "step-00000009")


class _Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_a_checkpoint_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    torch.save({"format": 1, "state": _Trap()}, folder / "state.pt")
    with pytest.raises(UserError):
        CheckpointStore(tmp_path, 1).load(folder)
    assert not (tmp_path / "trapped").exists()
