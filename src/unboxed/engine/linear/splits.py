"""Which examples a probe is fitted to, chosen on and tested on; and the labels of its control task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import rng
from ...errors import DataError, InputError
from ...validation import listed_names

N_VALIDATION_FOLDS = 4  # a quarter of the training examples chooses the penalty
SPLIT_INDEX_BY_FLAG = {"tr": 0, "train": 0, "va": 1, "dev": 1, "validation": 1, "te": 2, "test": 2}


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of examples: fitted on `fit` with each penalty, chosen on `validation`, fitted on `train`, tested."""

    fit: Tensor
    validation: Tensor
    train: Tensor
    test: Tensor


def stratified_folds(y: Tensor, n_folds: int, seed: int, stream: str = "folds") -> Tensor:
    """The fold (N,) of each example: those of a class are dealt out at random, folds differ by at most one example."""
    generator = rng.keyed_generator(rng.CPU, stream, seed)
    order = torch.randperm(len(y), generator=generator)
    order = order[y[order].argsort(stable=True)]
    return torch.empty_like(y).scatter_(0, order, torch.arange(len(y)) % n_folds)


def cross_validation_splits(y: Tensor, n_folds: int, seed: int) -> list[Split]:
    """Stratified folds, each tested once; a stratified quarter of the other folds chooses the penalty."""
    n_folds = min(n_folds, len(y))
    fold = stratified_folds(y, n_folds, seed)
    return [_make_split_with_validation(y, *_indices_inside_and_outside(fold == k), seed + k) for k in range(n_folds)]


def _indices_inside_and_outside(inside: Tensor) -> tuple[Tensor, Tensor]:
    return inside.nonzero().flatten(), (~inside).nonzero().flatten()


def _make_split_with_validation(y: Tensor, test: Tensor, train: Tensor, seed: int) -> Split:
    return Split(*split_off_validation(y, train, seed), train, test)


def split_off_validation(y: Tensor, train: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Training examples without a stratified quarter of them, and that quarter."""
    validation, fit = _indices_inside_and_outside(
        stratified_folds(y[train], N_VALIDATION_FOLDS, seed, "validation") == 0
    )
    return train[fit], train[validation]


def split_from_flags(flags: Sequence[Any] | Tensor) -> list[Split]:
    """One split by flags (N,): "tr", "va", "te" as in SentEval's files, or 0, 1, 2. Raises InputError and DataError.

    The penalty is chosen on "va"; the probe of the test is fitted on "tr" alone, as SentEval does.
    """
    values = flags.tolist() if isinstance(flags, Tensor) else list(flags)
    if unknown := sorted({str(v) for v in values if v not in SPLIT_INDEX_BY_FLAG and v not in (0, 1, 2)}):
        raise InputError(f"flags must be 'tr', 'va' or 'te'; got {listed_names(unknown)}")
    codes = torch.tensor([SPLIT_INDEX_BY_FLAG.get(v, v) for v in values])
    rows = [(codes == part).nonzero().flatten() for part in range(3)]
    if empty := [name for name, part in zip(("tr", "va", "te"), rows, strict=True) if not len(part)]:
        raise DataError(f"no example has the flag {' or '.join(map(repr, empty))}")
    train, validation, test = rows
    return [Split(train, validation, train, test)]


def control_task_labels(y: Tensor, types: Tensor | None, seed: int, draw: int) -> Tensor:
    """Labels (N,) that are a random function of an example's type, with exactly as many examples of each class as y.

    The types are put in random order and cut into runs as long as the classes, so that one type has one class, but for
    the few at which a run ends. Without types each example is one of its own, and the labels are permuted.
    """
    generator = rng.keyed_generator(rng.CPU, "control task", seed, draw)
    order = torch.randperm(len(y), generator=generator)
    if types is not None:
        _, type_index = torch.unique(types, return_inverse=True)
        shuffled = torch.randperm(int(type_index.max()) + 1, generator=generator)
        order = order[shuffled[type_index[order]].argsort(stable=True)]
    counts = y.bincount()
    classes = torch.randperm(len(counts), generator=generator)
    return torch.empty_like(y).scatter_(0, order, classes.repeat_interleave(counts[classes]))
