"""Outlier tokens of a vision transformer: patches whose vectors are far longer, and the neurons that make them.

Darcet et al. 2024, "Vision Transformers Need Registers", arXiv:2309.16588, section 2.1 (outlier tokens by their norm);
Jiang et al. 2025, "Vision Transformers Don't Need Trained Registers", arXiv:2506.08010, section 3 (register neurons).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..box import Box
from ..engine.read.attention_maps import attending_blocks, require_token_grid
from ..engine.read.position_grids import PositionGrid
from ..errors import LayerError
from ..model.batching import BatchSize, map_in_batches
from ..model.edited_model import EditedModel
from ..model.hooks import Edit
from ..model.nan_checks import check_no_nan


@dataclass(frozen=True, eq=False)
class TokenBlocks:
    """The blocks of a vision transformer, and where their neurons are."""

    addresses: tuple[str, ...]  # (L,)
    neurons: tuple[str, ...]  # (L,): what the last layer of each block's feed-forward network receives
    grid: PositionGrid

    @classmethod
    def of(cls, box: Box, x: Tensor, extra_tokens: int | None) -> TokenBlocks:
        """Raises LayerError for a model without blocks of tokens, or without feed-forward networks in them."""
        addresses = attending_blocks(box, x)
        shape = box.layers[addresses[-1]].shape
        return cls(
            tuple(addresses), tuple(_neurons_of_block(box, a) for a in addresses),
            require_token_grid(box, shape[0], extra_tokens),
        )  # fmt: skip

    def read_patches(
        self, box: Box, x: Tensor, addresses: Sequence[str], edits: Mapping[str, Edit], batch_size: BatchSize
    ) -> dict[str, Tensor]:
        """{address: (N, P, D)} of the patches' tokens, with edits made."""
        n_patches = self.grid.size[0] * self.grid.size[1]

        def read_rows(rows: slice) -> dict[str, Tensor]:
            with box.isolated(grad=False):
                acts = box.forward(x[rows], addresses, edits)
                return {a: acts[a][:, -n_patches:].detach() for a in addresses}

        parts = map_in_batches(read_rows, len(x), *box.batch_size_and_max_rows(len(x), batch_size))
        return {a: check_no_nan(torch.cat([p[a] for p in parts]), what=repr(a)) for a in addresses}

    def norms(self, box: Box, x: Tensor, edits: Mapping[str, Edit], batch_size: BatchSize) -> Tensor:
        """The lengths (N, L, P) of the patches' vectors after each block."""
        acts = self.read_patches(box, x, self.addresses, edits, batch_size)
        return torch.stack([acts[a].to(box.dtype).norm(dim=-1) for a in self.addresses], 1)


def _neurons_of_block(box: Box, block: str) -> str:
    """The input of the block's last linear layer that has more inputs than outputs. Raises LayerError."""
    found = [
        row.path for row in box.layers.leaves if row.path.startswith(f"{block}.") and _is_down_projection(box, row.path)
    ]
    if not found:
        raise LayerError(f"{block!r} has no feed-forward network, a linear layer with more inputs than outputs in it")
    return f"{found[-1]}:input"


def _is_down_projection(box: Box, path: str) -> bool:
    n_in, n_out = (getattr(box.modules[path], f"{side}_features", None) for side in ("in", "out"))
    return isinstance(n_in, int) and isinstance(n_out, int) and n_in > n_out


@dataclass(frozen=True)
class RegisterNeuron:
    """A neuron that makes outlier tokens.

    Attributes:
        layer: Address of what the last layer of its feed-forward network receives.
        unit: Its index there.
        at_outliers: Its mean magnitude at outlier tokens.
        elsewhere: That at other patches.
    """

    layer: str
    unit: int
    at_outliers: float
    elsewhere: float


def find_register_neurons(
    box: Box, x: Tensor, blocks: TokenBlocks, outliers: Tensor, n_blocks: int, max_neurons: int, batch_size: BatchSize
) -> list[RegisterNeuron]:
    """The neurons of the first blocks that write most at outliers (N, P), and not elsewhere, the strongest first."""
    layers = blocks.neurons[:n_blocks]
    acts = blocks.read_patches(box, x, layers, {}, batch_size)
    found: list[tuple[float, RegisterNeuron]] = []
    for layer in layers:
        magnitude = acts[layer].abs().to(box.dtype)
        inside, outside = magnitude[outliers].mean(0), magnitude[~outliers].mean(0)  # (H,)
        weight: Tensor = getattr(box.modules[layer.rpartition(":")[0]], "weight")  # noqa: B009
        written = (inside - outside) * weight.detach().to(inside).norm(dim=0)  # (H,) of the residual stream
        top = written.topk(min(max_neurons, len(written)))
        for value, unit in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            found.append((value, RegisterNeuron(layer, unit, float(inside[unit]), float(outside[unit]))))
    found.sort(key=lambda pair: -pair[0])
    return [neuron for value, neuron in found[:max_neurons] if value > 0]


# -- the register ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _MoveToRegister:
    """Neurons' activations (n, T + 1, H): their largest of the patches at the register, zero everywhere else."""

    units: Tensor
    register: int

    def __call__(self, h: Tensor) -> Tensor:
        moved = h.clone()
        values = h[:, self.register + 1 :, self.units.to(h.device)]  # of the patches (n, P, k)
        at = values.abs().argmax(1, keepdim=True)
        moved[:, :, self.units.to(h.device)] = 0
        moved[:, self.register, self.units.to(h.device)] = values.gather(1, at)[:, 0]
        return moved


@dataclass(frozen=True)
class _InsertToken:
    """Tokens (n, T, D) with one of zeros before the patches."""

    at: int

    def __call__(self, h: Tensor) -> Tensor:
        return torch.cat([h[:, : self.at], h.new_zeros(len(h), 1, h.shape[2]), h[:, self.at :]], 1)


@dataclass(frozen=True)
class _RemoveToken:
    at: int

    def __call__(self, h: Tensor) -> Tensor:
        return torch.cat([h[:, : self.at], h[:, self.at + 1 :]], 1)


def box_with_register(box: Box, blocks: TokenBlocks, neurons: Sequence[RegisterNeuron]) -> Box:
    """The model with a token of zeros before its patches, to which these neurons' activations are moved.

    The token is taken out after the last block, so that what reads the tokens gets as many as before. Raises LayerError
    for a model that takes no further token.
    """
    at = blocks.grid.n_extra_tokens
    units: dict[str, list[int]] = {}
    for neuron in neurons:
        units.setdefault(neuron.layer, []).append(neuron.unit)
    edits: dict[str, Edit] = {a: _MoveToRegister(torch.tensor(k), at) for a, k in units.items()}
    edits |= {f"{blocks.addresses[0]}:input": _InsertToken(at), blocks.addresses[-1]: _RemoveToken(at)}
    try:
        return box.with_model(EditedModel(box.model, edits))
    except RuntimeError as error:
        raise LayerError(f"this model takes no token more than it was made for: {error}") from error
