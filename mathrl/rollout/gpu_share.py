"""Training and sampling on one GPU at the same time, by two processes.

Without NVIDIA's MPS (``nvidia-cuda-mps-control -d``) the two take turns, a time slice each, and nothing is
won. With it their kernels run side by side as far as multiprocessors are free. A matrix product of training
would take all of them, and each of the hundreds of small kernels of a decoding step would wait for one. So
what trains meanwhile keeps to a part of the multiprocessors (a green context: CUDA Driver API, section "Green
Contexts"), and where the two still meet it comes second.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a command settles who comes second before it loads torch
    import torch

PRIORITY = "CUDA_MPS_CLIENT_PRIORITY"  # of MPS; read when a process starts CUDA: 0 normal, 1 below normal
PART = 0.73  # of the multiprocessors, for training; benchmarks/results/step_time.md has what was measured


_settled_here: set[str] = set()  # variables of the environment that the user has not set


def come_second() -> None:
    """This process's kernels wait for those of its engines, where MPS runs; called before CUDA is started."""
    if PRIORITY not in os.environ:
        _settled_here.add(PRIORITY)
        os.environ[PRIORITY] = "1"


def environment_of_engines() -> dict[str, str]:
    """What their processes have otherwise than this one."""
    return dict.fromkeys(_settled_here, "0")


class Beside:
    """``with beside(): …`` launches kernels that leave a part of the GPU to the engine.

    Everything inside comes after what was launched before, and before what is launched afterwards.

    Args:
        device: that trains.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        self.reserved = 0  # multiprocessors that are left to the engine
        self.why = ""  # why none are, on a GPU
        if device.type == "cuda":
            try:
                self._stream, self.reserved = _stream_of_a_part(device, PART)
            except (ImportError, AttributeError):
                self.why = "the package cuda-bindings is not there"
            except _NotPossible as error:
                self.why = str(error)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        import torch

        usual = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(usual)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            usual.wait_stream(self._stream)


class _NotPossible(Exception):
    """Why no part of the GPU can be kept free."""


@functools.cache  # a stream lives as long as this process, like torch's own
def _stream_of_a_part(device: torch.device, part: float) -> tuple[torch.cuda.Stream, int]:
    """A stream whose kernels run on a part of the device's multiprocessors, and how many they leave.

    Raises:
        ImportError, AttributeError: NVIDIA's bindings are not there, or too old.
        _NotPossible: MPS does not run, or CUDA refuses.
    """
    driver: Any = importlib.import_module("cuda.bindings.driver")
    torch = importlib.import_module("torch")
    torch.cuda.init()
    index = device.index if device.index is not None else torch.cuda.current_device()
    gpu = _asked(driver.cuDeviceGet(index))
    if not _asked(
        driver.cuDeviceGetAttribute(driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MPS_ENABLED, gpu)
    ):
        raise _NotPossible("NVIDIA's MPS does not run (nvidia-cuda-mps-control -d)")
    kind = driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    whole = _asked(driver.cuDeviceGetDevResource(gpu, kind))
    parts, _, _ = _asked(driver.cuDevSmResourceSplitByCount(1, whole, 0, int(part * whole.sm.smCount)))
    described = _asked(driver.cuDevResourceGenerateDesc([parts[0]], 1))
    flag = driver.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM
    context = _asked(
        driver.cuGreenCtxCreate(described, gpu, flag)
    )  # as long as this process, like torch's own
    flag = driver.CUstream_flags.CU_STREAM_NON_BLOCKING
    stream = _asked(driver.cuGreenCtxStreamCreate(context, flag, 0))
    left = whole.sm.smCount - parts[0].sm.smCount
    return torch.cuda.ExternalStream(int(stream), device=index), left


def _side_by_side(driver: Any, gpu: Any) -> bool:
    """Whether kernels of several processes run on this GPU at the same time."""
    return bool(
        _asked(driver.cuDeviceGetAttribute(driver.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MPS_ENABLED, gpu))
    )


def _asked(answer: tuple[Any, ...]) -> Any:
    """What a call of the driver returns beside its error code."""
    code, *values = answer
    if int(code):
        raise _NotPossible(f"CUDA refuses to part it ({getattr(code, 'name', code)})")
    return values[0] if len(values) == 1 else values
