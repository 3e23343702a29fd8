"""Memory that tensors free stays with the process."""

import ctypes
import resource

import pytest
import torch

from mathrl.policy import loading


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_freed_memory_is_kept():
    loading.keep_freed_memory()
    torch.ones(1 << 24).sum()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24).sum()  # 64 MiB, 16,384 pages
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000
