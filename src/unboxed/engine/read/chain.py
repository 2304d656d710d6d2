"""The layers that a model runs one after another, found by how its modules are nested, not by their names."""

from __future__ import annotations

from torch import nn

from ...box import Box

LIST_TYPES = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def chain_addresses(box: Box) -> list[str]:
    """Addresses of the layers that may follow one another: blocks of a list, and the layers before and after it.

    Whether all of the model goes through them is for the caller to find out.
    """
    paths = [p for p in box.modules if p and (_is_in_list(box, p) or _is_outermost_without_list(box, p))]
    rows = [box.layers.by_path[p] for p in paths if p in box.layers.by_path]
    return [a for row in rows if row.has_input and row.shape for a in row.addresses]


def _is_in_list(box: Box, path: str) -> bool:
    parent = path.rpartition(".")[0]
    return isinstance(box.modules[parent], LIST_TYPES) and len(box.modules[parent]._modules) > 1


def _is_outermost_without_list(box: Box, path: str) -> bool:
    """Whether no list of layers is inside a module, while one is inside what it is a part of, or that is all."""
    parent = path.rpartition(".")[0]
    return not _has_list(box.modules[path]) and (not parent or _has_list(box.modules[parent]))


def _has_list(module: nn.Module) -> bool:
    return any(isinstance(m, LIST_TYPES) and len(m._modules) > 1 for m in module.modules())
