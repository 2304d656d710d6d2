"""The layers that a model runs one after another, found by how its modules are nested, not by their names."""

from __future__ import annotations

from torch import nn

from ...box import Box

MODULE_CONTAINER_TYPES = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


def chain_addresses(box: Box) -> list[str]:
    """Addresses of the layers that may follow one another: blocks of a list, and the layers before and after it.

    Whether all of the model goes through them is for the caller to find out.
    """
    paths = [
        p for p in box.modules if p and (_is_in_module_container(box, p) or _is_outermost_without_container(box, p))
    ]
    rows = [box.layers.by_path[p] for p in paths if p in box.layers.by_path]
    return [a for row in rows if row.has_input and row.shape for a in row.addresses]


def _is_in_module_container(box: Box, path: str) -> bool:
    parent = path.rpartition(".")[0]
    return isinstance(box.modules[parent], MODULE_CONTAINER_TYPES) and len(box.modules[parent]._modules) > 1


def _is_outermost_without_container(box: Box, path: str) -> bool:
    """Whether no list of layers is inside a module, while one is inside what it is a part of, or that is all."""
    parent = path.rpartition(".")[0]
    return not _has_module_container(box.modules[path]) and (not parent or _has_module_container(box.modules[parent]))


def _has_module_container(module: nn.Module) -> bool:
    return any(isinstance(m, MODULE_CONTAINER_TYPES) and len(m._modules) > 1 for m in module.modules())
