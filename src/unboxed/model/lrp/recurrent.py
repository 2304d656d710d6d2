"""Recurrent layers, which torch runs as one fused op, decomposed into ops that have rules.

Gates are sigmoids, so the gated signal receives all relevance: Arras et al. 2017, "Explaining Recurrent
Neural Network Predictions in Sentiment Analysis", arXiv:1706.07206.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import RuleError

RecurrentState = tuple[Tensor, ...]
CellFn = Callable[[Tensor, RecurrentState, Sequence[Tensor]], RecurrentState]
"""(x_t, state, weights) -> the next state; its first part is the output."""


def _project_input_and_state(x: Tensor, h: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    bias_pair = weights[2:] or (None, None)
    return F.linear(x, weights[0], bias_pair[0]), F.linear(h, weights[1], bias_pair[1])


def _lstm_cell(x: Tensor, state: RecurrentState, weights: Sequence[Tensor]) -> RecurrentState:
    h, c = state
    from_x, from_h = _project_input_and_state(x, h, weights)
    i, f, g, o = (from_x + from_h).chunk(4, -1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru_cell(x: Tensor, state: RecurrentState, weights: Sequence[Tensor]) -> RecurrentState:
    (h,) = state
    (r, z, n), (r_h, z_h, n_h) = (t.chunk(3, -1) for t in _project_input_and_state(x, h, weights))
    z = (z + z_h).sigmoid()
    return ((1 - z) * (n + (r + r_h).sigmoid() * n_h).tanh() + z * h,)


def _tanh_cell(x: Tensor, state: RecurrentState, weights: Sequence[Tensor]) -> RecurrentState:
    from_x, from_h = _project_input_and_state(x, state[0], weights)
    return ((from_x + from_h).tanh(),)


def _relu_cell(x: Tensor, state: RecurrentState, weights: Sequence[Tensor]) -> RecurrentState:
    from_x, from_h = _project_input_and_state(x, state[0], weights)
    return ((from_x + from_h).relu(),)


CELL_FN_BY_KIND: dict[str, CellFn] = {
    "lstm": _lstm_cell,
    "gru": _gru_cell,
    "rnn_tanh": _tanh_cell,
    "rnn_relu": _relu_cell,
}


def run_recurrent(kind: str, *args: Any) -> tuple[Tensor, ...]:
    """(output (T, N, H) or (N, T, H), last states (layers, N, H) each), as torch returns them. Raises RuleError."""
    if len(args) < 9 or not isinstance(args[2], (list, tuple)):
        raise RuleError(f"LRP has no rule for {kind} on packed sequences: give it padded ones")
    x, initial_state, weights, has_biases, n_layers, dropout, training, bidirectional, batch_first = args[:9]
    n_directions, n_weights = 1 + bidirectional, 4 if has_biases else 2
    if len(weights) != n_directions * n_layers * n_weights:
        raise RuleError(f"LRP has no rule for {kind} with projections: write its cell out in linear, sigmoid and tanh")
    initial_state = (initial_state,) if isinstance(initial_state, Tensor) else tuple(initial_state)
    h, last_states = x.transpose(0, 1) if batch_first else x, list[RecurrentState]()
    for layer in range(n_layers):
        outs = []
        for direction in range(n_directions):
            i = layer * n_directions + direction
            out, state = _run_layer_in_one_direction(
                CELL_FN_BY_KIND[kind],
                h,
                tuple(s[i] for s in initial_state),
                weights[i * n_weights : (i + 1) * n_weights],
                direction == 1,
            )
            outs.append(out)
            last_states.append(state)
        h = torch.cat(outs, -1) if bidirectional else outs[0]
        h = F.dropout(h, dropout, training) if layer < n_layers - 1 else h
    return h.transpose(0, 1) if batch_first else h, *(torch.stack(s) for s in zip(*last_states, strict=True))


def _run_layer_in_one_direction(
    cell: CellFn, x: Tensor, state: RecurrentState, weights: Sequence[Tensor], reverse: bool
) -> tuple[Tensor, RecurrentState]:
    """One layer in one direction over x (T, N, C): its outputs (T, N, H) and the last state."""
    steps = x.unbind(0)[::-1] if reverse else x.unbind(0)
    outs = []
    for step in steps:
        state = cell(step, state, weights)
        outs.append(state[0])
    return torch.stack(outs[::-1] if reverse else outs), state
