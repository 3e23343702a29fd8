"""Memory that tensors free stays with the process."""

import ctypes
import resource

import pytest
import torch

from mathrl.policy import loading


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library")
def test_freed_memory_is_kept():
    """Of some rounds one at least finds it whole: what is small may have been cut from it in between."""
    loading.keep_freed_memory()
    torch.ones(1 << 24).sum()
    assert min(cleared_pages() for _ in range(8)) < 1000


def cleared_pages() -> int:
    """That the system gave for 64 MiB, 16,384 pages."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
