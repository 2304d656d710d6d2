"""Where the relevance of a score goes, layer by layer: passed on, held back by what is no input, or lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .result_views import ResultViewsMixin


@dataclass(frozen=True, eq=False, repr=False)
class Conservation(ResultViewsMixin):
    """What each layer does with the relevance that it receives, from the input up; prints as a table.

    A layer here begins where the one before ends, and all of the model's relevance goes through its output. What
    biases, constants (positions, types of tokens, class tokens, masks), the expansion of softmax and the stabilizer
    hold back is counted op by op while relevance is propagated; `error` is what is neither passed on nor counted.

    Attributes:
        layers: Addresses of the layers, in the order in which they run; the last is "score" where something comes after
            the last layer.
        received: Relevance (N, L) at each layer's output.
        passed_on: Relevance (N, L) at its input; that of the first layer is the map's.
        held_back: {kind: relevance (N, L)} of "biases", "constants", "softmax" and "epsilon".
        error: received - passed_on - all that is held back, (N, L).
        unruled: Ops in the layer with the largest error that do not pass on what they receive; empty where that is
            small.
    """

    layers: tuple[str, ...]
    received: Tensor
    passed_on: Tensor
    held_back: Mapping[str, Tensor]
    unruled: tuple[str, ...] = ()

    @property
    def error(self) -> Tensor:
        """What is neither passed on nor counted, (N, L)."""
        return self.received - self.passed_on - torch.stack([*self.held_back.values()]).sum(0)

    @property
    def relative_error(self) -> Tensor:
        """The error of each layer as a share of the score, (N, L)."""
        score = self.received[:, -1:].abs()
        return self.error.abs() / torch.where(score == 0, 1, score)

    @property
    def max_error(self) -> float:
        """The largest error of any layer and example, as a share of the score."""
        return float(self.relative_error.max()) if self.relative_error.numel() else 0.0

    def shares(self, values: Tensor) -> Tensor:
        """Relevance (N, L) as shares of the score, averaged over the examples: (L,)."""
        score = self.received[:, -1]
        return (values * score.sign()[:, None]).sum(0) / score.abs().sum().clamp_min(1e-30)

    @classmethod
    def joined(cls, parts: Sequence[Conservation]) -> Conservation:
        """The accounts of several batches as one; its layers are those of the first."""
        received, passed_on = (torch.cat([getattr(p, name) for p in parts]) for name in ("received", "passed_on"))
        held_back = {kind: torch.cat([p.held_back[kind] for p in parts]) for kind in parts[0].held_back}
        unruled = dict.fromkeys(op for p in parts for op in p.unruled)
        return cls(parts[0].layers, received, passed_on, held_back, tuple(unruled))

    def to(self, dtype: torch.dtype) -> Conservation:
        """This account in another precision: it is summed in double precision."""
        held_back = {kind: values.to(dtype) for kind, values in self.held_back.items()}
        return replace(self, received=self.received.to(dtype), passed_on=self.passed_on.to(dtype), held_back=held_back)

    def with_unruled_ops(self, ops: tuple[str, ...]) -> Conservation:
        """This account with the ops that lose relevance."""
        return replace(self, unruled=ops)

    def without_unchanged_last_layer(self) -> Conservation:
        """This account without a last layer in which nothing happens: a score that is one of the last one's outputs."""
        is_idle = torch.equal(self.received[:, -1], self.passed_on[:, -1]) and len(self.layers) > 1
        if not is_idle:
            return self
        held_back = {kind: values[:, :-1] for kind, values in self.held_back.items()}
        return replace(
            self, layers=self.layers[:-1], received=self.received[:, :-1], passed_on=self.passed_on[:, :-1],
            held_back=held_back,
        )  # fmt: skip

    def __repr__(self) -> str:
        n, n_layers = self.received.shape
        return f"Conservation({n_layers} layers, {n} inputs, max_error={self.max_error:.1e})"

    def __str__(self) -> str:
        """The table: for each layer, shares of the score."""
        head = ["layer", "receives", "passes on", *self.held_back, "error"]
        columns = [self.received, self.passed_on, *self.held_back.values()]
        shares = torch.stack([self.shares(c) for c in columns], 1).tolist()
        errors = self.relative_error.amax(0).tolist()
        rows = [
            [layer, *(f"{100 * s:.2f} %" for s in row), f"{e:.0e}"]
            for layer, row, e in zip(self.layers, shares, errors, strict=True)
        ]
        return _aligned_table_text([head, *reversed(rows)])


def _aligned_table_text(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
