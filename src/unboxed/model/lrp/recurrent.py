"""Recurrent layers, which torch runs as one fused op, in ops that have rules.

Gates are sigmoids, so the signal that they let through bears all relevance: Arras et al. 2017, "Explaining Recurrent
Neural Network Predictions in Sentiment Analysis", arXiv:1706.07206.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import RuleError

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Sequence[Tensor]], State]
"""(x_t, state, weights) -> the next state; its first part is the output."""


def _both(x: Tensor, h: Tensor, w: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    biases = w[2:] or (None, None)
    return F.linear(x, w[0], biases[0]), F.linear(h, w[1], biases[1])


def _lstm(x: Tensor, state: State, w: Sequence[Tensor]) -> State:
    h, c = state
    from_x, from_h = _both(x, h, w)
    i, f, g, o = (from_x + from_h).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, state: State, w: Sequence[Tensor]) -> State:
    (h,) = state
    (r, z, n), (r_h, z_h, n_h) = (t.chunk(3, -1) for t in _both(x, h, w))
    z = (z + z_h).sigmoid()
    return ((1 - z) * (n + (r + r_h).sigmoid() * n_h).tanh() + z * h,)


def _tanh(x: Tensor, state: State, w: Sequence[Tensor]) -> State:
    from_x, from_h = _both(x, state[0], w)
    return ((from_x + from_h).tanh(),)


def _relu(x: Tensor, state: State, w: Sequence[Tensor]) -> State:
    from_x, from_h = _both(x, state[0], w)
    return ((from_x + from_h).relu(),)


CELLS: dict[str, Cell] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _tanh, "rnn_relu": _relu}


def recurrent(kind: str, *args: Any) -> tuple[Tensor, ...]:
    """(output (T, N, H) or (N, T, H), last states (layers, N, H) each), as torch gives them. Raises RuleError."""
    if len(args) < 9 or not isinstance(args[2], (list, tuple)):
        raise RuleError(f"LRP has no rule for {kind} on packed sequences: give it padded ones")
    x, start, weights, biased, layers, dropout, training, two_ways, batch_first = args[:9]
    ways, each = 1 + two_ways, 4 if biased else 2
    if len(weights) != ways * layers * each:
        raise RuleError(f"LRP has no rule for {kind} with projections: write its cell out in linear, sigmoid and tanh")
    start = (start,) if isinstance(start, Tensor) else tuple(start)
    h, last = x.transpose(0, 1) if batch_first else x, list[State]()
    for layer in range(layers):
        outs = []
        for way in range(ways):
            i = layer * ways + way
            out, state = _run(CELLS[kind], h, tuple(s[i] for s in start), weights[i * each : (i + 1) * each], way == 1)
            outs.append(out)
            last.append(state)
        h = torch.cat(outs, -1) if two_ways else outs[0]
        h = F.dropout(h, dropout, training) if layer < layers - 1 else h
    return h.transpose(0, 1) if batch_first else h, *(torch.stack(s) for s in zip(*last, strict=True))


def _run(cell: Cell, x: Tensor, state: State, w: Sequence[Tensor], backwards: bool) -> tuple[Tensor, State]:
    """One layer in one direction over x (T, N, C): its outputs (T, N, H) and the last state."""
    steps = x.unbind(0)[::-1] if backwards else x.unbind(0)
    outs = []
    for step in steps:
        state = cell(step, state, w)
        outs.append(state[0])
    return torch.stack(outs[::-1] if backwards else outs), state
