"""Ours and a peer, run in turn in one process; first it is checked that both do the same.

Times are CPU time of this process where the work is the CPU's, as machines are busy with other things; on an
accelerator they are by the clock, after it has finished.
"""

from __future__ import annotations

import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

SHORT = 0.05  # seconds: works shorter than this are timed MANY times, and garbage is collected once before
MANY = 201
RESULTS = Path(__file__).parent / "results"
Work = Callable[[], object]


def compare(
    ours: Work, peer: Work, *, pairs: int = 15, check: Work | None = None, warmup: int = 1
) -> dict[str, float | int]:
    """The median over `pairs` of time(ours) / time(peer), with its quartiles; below 1 ours is faster.

    `check` runs first and raises where both don't give the same answer. Which of the two goes first alternates, so that
    a machine that slows down or speeds up favors neither. Short works are run more often, without a collection of
    garbage before each: that would empty the caches, and a call of a few ms would be timed by how it fills them again.
    """
    if check is not None:
        check()
    took = [seconds(work) for work in (ours, peer) * warmup]
    short = bool(took) and max(took[-2:]) < SHORT
    pairs = max(pairs, MANY) if short else pairs
    gc.collect()
    times = [_pair(ours, peer, swapped=bool(i % 2), collect=not short) for i in range(pairs)]
    ratios = [a / b for a, b in times]
    low, middle, high = statistics.quantiles(ratios, n=4) if pairs > 1 else ratios * 3
    return {
        "ratio": middle,
        "low": low,
        "high": high,
        "ours_ms": 1e3 * statistics.median(a for a, _ in times),
        "peer_ms": 1e3 * statistics.median(b for _, b in times),
        "pairs": pairs,
    }


def _pair(ours: Work, peer: Work, swapped: bool, collect: bool) -> tuple[float, float]:
    if swapped:
        second = seconds(peer, collect=collect)
        return seconds(ours, collect=collect), second
    return seconds(ours, collect=collect), seconds(peer, collect=collect)


def seconds(work: Work, *, collect: bool = True) -> float:
    """How long one call takes; garbage of before is none of its business (`collect`)."""
    if collect:
        gc.collect()
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    _synchronize()
    start = clock()
    work()
    _synchronize()
    return clock() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write(name: str, figures: Mapping[str, Any], *, packages: Iterable[str] = ()) -> Path:
    """Put figures with the machine and the versions in results/NAME.json, whole, and print them."""
    content = {**figures, "machine": machine(), "versions": versions(("torch", "numpy", *packages))}
    text = json.dumps(content, indent=2) + "\n"
    RESULTS.mkdir(exist_ok=True)
    path, part = RESULTS / f"{name}.json", RESULTS / f".{name}.json.{os.getpid()}.part"
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    print(text, end="")
    return path


def machine() -> dict[str, Any]:
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
