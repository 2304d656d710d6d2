"""Activations on a CPU: a forward pass after the first takes memory that the process already has."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

MAX_FAULTS = 200  # per call, where memory that is mapped anew each time gives 2,000

COUNT_PAGE_FAULTS = """
import resource, torch, unboxed as ub
torch.set_num_threads(1)
box = ub.Box(*ub.zoo.load("mnist-cnn"))
x = box.noise(16)
def n_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    ub.attribution.gradient(box, x, 3)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(sorted(n_faults() for _ in range(9))[4])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc learns from the blocks that are freed")
def test_activations_are_not_mapped_anew() -> None:
    done = subprocess.run([sys.executable, "-c", COUNT_PAGE_FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < MAX_FAULTS
