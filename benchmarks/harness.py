"""Ours and a peer, run in turn in one process; first it is checked that both do the same."""

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

RESULTS = Path(__file__).parent / "results"
Work = Callable[[], object]


def compare(
    ours: Work, peer: Work, *, pairs: int = 15, check: Work | None = None, warmup: int = 1
) -> dict[str, float | int]:
    """The median over `pairs` of time(ours) / time(peer), with its quartiles; below 1 ours is faster.

    `check` runs first and raises where both don't give the same answer. Which of the two goes first alternates, so that
    a machine that slows down or speeds up favors neither.
    """
    if check is not None:
        check()
    for work in (ours, peer) * warmup:
        work()
    times = [_pair(ours, peer, swapped=bool(i % 2)) for i in range(pairs)]
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


def _pair(ours: Work, peer: Work, swapped: bool) -> tuple[float, float]:
    if swapped:
        second = seconds(peer)
        return seconds(ours), second
    return seconds(ours), seconds(peer)


def seconds(work: Work) -> float:
    """How long one call takes; garbage of before is none of its business."""
    gc.collect()
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


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
