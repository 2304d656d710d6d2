"""Which examples each concept activation vector is fitted to: a concept's against those of a random set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rng
from ..errors import DataError, InputError

MIN_RANDOM_EXAMPLES = 4  # of which two sets of two are made


@dataclass(frozen=True, eq=False)
class ExampleSets:
    """All examples that vectors are fitted to, and the rows of each set.

    Attributes:
        x: (M, ...) all examples.
        keys: (M,) a number that equal examples share.
        random_rows: (P,) the rows of the random examples.
        positives: Of each concept (R, n), the rows of its examples in each of R fits.
        negatives: Of each concept (R, n), the rows of the set that they are told apart from.
        random: {n: (R, n)} the random sets of each size n of a concept's sets.
    """

    x: Tensor
    keys: Tensor
    random_rows: Tensor
    positives: tuple[Tensor, ...]
    negatives: tuple[Tensor, ...]
    random: Mapping[int, Tensor]

    @property
    def sizes(self) -> list[int]:
        """Examples in each concept's sets."""
        return [rows.shape[1] for rows in self.positives]


def draw_example_sets(
    concepts: Mapping[str, Tensor], pool: Tensor, n_sets: int, max_size: int, seed: int, *, relative: bool = False
) -> ExampleSets:
    """Sets of each concept's examples and, as large, of random ones; `relative`: of the other concepts' in their place.

    A concept with more than `max_size` examples has other ones in each of its sets. Raises DataError for too few random
    examples, or a concept that all of them belong to; InputError for a concept without others to be relative to.
    """
    if len(pool) < MIN_RANDOM_EXAMPLES:
        raise DataError(f"random sets need at least {MIN_RANDOM_EXAMPLES} examples to draw from; got {len(pool)}")
    if relative and len(concepts) < 2:
        raise InputError(f"relative vectors need two concepts or more; got {', '.join(concepts)} alone")
    own = _numbered([len(c) for c in concepts.values()])
    rest = [torch.cat([rows for rows in own if rows is not mine]) for mine in own] if relative else []
    limit = min(max_size, len(pool) // 2)
    sizes = [min(limit, len(mine), *([len(rest[c])] if relative else [])) for c, mine in enumerate(own)]
    first_random = sum(map(len, own))
    random = first_random + _draw_set_rows(len(pool), n_sets, max(sizes), seed, "random")
    positives = [
        rows[_draw_set_rows(len(rows), n_sets, n, seed, f"concept {c}")]
        for c, (rows, n) in enumerate(zip(own, sizes, strict=True))
    ]
    negatives = [
        rest[c][_draw_set_rows(len(rest[c]), n_sets, n, seed, f"others {c}")] if relative else random[:, :n]
        for c, n in enumerate(sizes)
    ]
    sets = _reindex_to_used_examples(torch.cat([*concepts.values(), pool]), positives, negatives, random)
    _check_some_differ(sets, list(concepts))
    return sets


def _numbered(sizes: Sequence[int]) -> list[Tensor]:
    """The row numbers of parts of these sizes that follow one another."""
    return list(torch.split(torch.arange(sum(sizes)), list(sizes)))


def _draw_set_rows(n_rows: int, n_sets: int, size: int, seed: int, name: str) -> Tensor:
    """(R, size) of the rows in each set, without replacement; sets are disjoint as far as the rows suffice."""
    if size == n_rows:
        return torch.arange(n_rows).expand(n_sets, -1)
    generator = rng.keyed_generator(rng.CPU, "example sets", name, seed)
    per_order = n_rows // size
    orders = [torch.randperm(n_rows, generator=generator) for _ in range(-(-n_sets // per_order))]
    return torch.cat([order[: per_order * size].view(per_order, size) for order in orders])[:n_sets]


def _reindex_to_used_examples(
    x: Tensor, positives: list[Tensor], negatives: list[Tensor], random: Tensor
) -> ExampleSets:  # fmt: skip
    """Sets of the examples that are in any of them."""
    used = torch.unique(torch.cat([rows.flatten() for rows in (*positives, *negatives, random)]))
    new = torch.full((len(x),), -1).scatter_(0, used, torch.arange(len(used)))
    x, random = x[used.to(x.device)], new[random]
    sizes = sorted({rows.shape[1] for rows in positives})
    by_size = {n: random[:, :n] for n in sizes}
    positive_rows, negative_rows = (tuple(new[rows] for rows in sets) for sets in (positives, negatives))
    return ExampleSets(x, _example_keys(x), torch.unique(random), positive_rows, negative_rows, by_size)


def _example_keys(x: Tensor) -> Tensor:
    """(M,) a number for each example, the same for equal ones."""
    numbers = dict[bytes, int]()
    rows = x.detach().cpu().flatten(1).contiguous().numpy()
    return torch.tensor([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])


def shared_example_mask(keys: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """(B, n) bool: which examples of each row of `rows` (B, n) are among its `others` (B, m), too."""
    return (keys[rows][:, :, None] == keys[others][:, None, :]).any(2)


def _check_some_differ(sets: ExampleSets, names: Sequence[str]) -> None:
    """Raise DataError for a concept to which a set, or all that sets are drawn from, belongs."""
    for name, positives, negatives in zip(names, sets.positives, sets.negatives, strict=True):
        all_shared = shared_example_mask(sets.keys, negatives.reshape(1, -1), positives.reshape(1, -1)).all()
        if bool(all_shared | shared_example_mask(sets.keys, negatives, positives).all(1).any()):
            raise DataError(
                f"concept {name!r} has the same examples as a set that it is to be told apart from; give other random "
                "examples, or more of them"
            )
