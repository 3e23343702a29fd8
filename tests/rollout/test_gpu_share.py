"""Who comes second on a shared GPU, and why no part of it is kept free where none can be."""

import os
import sys
from enum import IntEnum
from types import SimpleNamespace

import pytest
import torch

from mathrl.rollout import gpu_share
from mathrl.rollout.gpu_share import PRIORITY, Beside, come_second
from mathrl.rollout.vllm_settings import engine_environment


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.setenv(PRIORITY, "")
    monkeypatch.delenv(PRIORITY)
    monkeypatch.setattr(gpu_share, "_settled_here", set())
    yield
    gpu_share._stream_of_a_part.cache_clear()


def test_the_trainer_comes_second_and_its_engines_do_not():
    with engine_environment("cuda"):
        assert PRIORITY not in os.environ
    come_second()
    assert os.environ[PRIORITY] == "1"
    with engine_environment("cuda"):
        assert os.environ[PRIORITY] == "0"
    assert os.environ[PRIORITY] == "1"


@pytest.mark.parametrize("own", ["0", "1"])
def test_what_the_user_has_set_stays_for_both(own):
    os.environ[PRIORITY] = own
    come_second()
    with engine_environment("cuda"):
        assert os.environ[PRIORITY] == own
    assert os.environ[PRIORITY] == own


def test_off_the_gpu_nothing_is_kept_free():
    beside = Beside(torch.device("cpu"))
    assert (beside.reserved, beside.why) == (0, "")
    with beside():
        assert torch.ones(2).sum() == 2


class Result(IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_NOT_SUPPORTED = 801


def planted(mps=1, split=Result.CUDA_SUCCESS):
    """A driver of a GPU of 132 multiprocessors that gives them in eights."""

    def share(number, whole, flags, least):
        given = SimpleNamespace(sm=SimpleNamespace(smCount=-(-least // 8) * 8))
        return (split, [given], 1, None) if split == 0 else (split, None, None, None)

    names = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_MPS_ENABLED=133, CU_DEV_RESOURCE_TYPE_SM=1, CU_GREEN_CTX_DEFAULT_STREAM=1,
        CU_STREAM_NON_BLOCKING=1,
    )  # fmt: skip
    good = Result.CUDA_SUCCESS
    return SimpleNamespace(
        CUdevice_attribute=names, CUdevResourceType=names, CUgreenCtxCreate_flags=names, CUstream_flags=names,
        cuDeviceGet=lambda index: (good, 7),
        cuDeviceGetAttribute=lambda which, gpu: (good, mps),
        cuDeviceGetDevResource=lambda gpu, kind: (good, SimpleNamespace(sm=SimpleNamespace(smCount=132))),
        cuDevSmResourceSplitByCount=share,
        cuDevResourceGenerateDesc=lambda parts, number: (good, "described"),
        cuGreenCtxCreate=lambda described, gpu, flag: (good, "context"),
        cuGreenCtxStreamCreate=lambda context, flag, priority: (good, 1234),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("driver", "why"),
    [
        (planted(mps=0), "NVIDIA's MPS does not run (nvidia-cuda-mps-control -d)"),
        (
            planted(split=Result.CUDA_ERROR_NOT_SUPPORTED),
            "CUDA refuses to part it (CUDA_ERROR_NOT_SUPPORTED)",
        ),
        (SimpleNamespace(), "the package cuda-bindings is not there"),
        (None, "the package cuda-bindings is not there"),
    ],
)
def test_why_nothing_is_kept_free(monkeypatch, driver, why):
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", driver)
    beside = Beside(torch.device("cuda", 0))
    assert (beside.reserved, beside.why) == (0, why)
    with beside():
        pass


def test_a_part_of_the_multiprocessors_is_kept_free(monkeypatch):
    streams = []
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda number, device: streams.append(number))
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", planted())
    beside = Beside(torch.device("cuda", 0))
    assert (beside.reserved, beside.why, streams) == (132 - 96, "", [1234])
