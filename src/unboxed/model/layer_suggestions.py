"""The layers that are meant by a name that no layer has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from ..validation import nearest_names, normalized_name, suggestion_text

MAX_LAYERS_OF_A_TYPE = 5  # that a message names


class TypedLayer(Protocol):
    """What is asked of a layer here."""

    @property
    def type(self) -> str: ...
    @property
    def is_leaf(self) -> bool: ...


def suggested_layers_text(name: str, layer_by_path: Mapping[str, TypedLayer], ops: Collection[tuple[str, str]]) -> str:
    """The end of an error: layers that are spelled so, else those of the type that is spoken of, else all there are."""
    of_type = [] if ":" in name or nearest_names(name, layer_by_path) else _paths_of_type_like(name, layer_by_path)
    names = [*layer_by_path, *(f"{path}:{op}" for path, op in ops)]
    return f"did you mean {' or '.join(of_type)}?" if of_type else suggestion_text(name, names)


def _paths_of_type_like(name: str, layer_by_path: Mapping[str, TypedLayer]) -> list[str]:
    """Models that number their layers are spoken of by types: "conv2" means one of the Conv2d."""
    kind = normalized_name(name.partition("#")[0].rpartition(".")[2]).rstrip("0123456789")
    rows = [(path, row.type) for path, row in layer_by_path.items() if row.is_leaf]
    found = [(path, type_name) for path, type_name in rows if kind and normalized_name(type_name).startswith(kind)]
    return [f"{path!r} ({type_name})" for path, type_name in found[:MAX_LAYERS_OF_A_TYPE]]
