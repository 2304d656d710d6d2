"""Models saved by `torch.export`: a .pt2 file, unflattened, so that its layers have their names again."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from ..errors import InputError, ModelError, warn

aten = torch.ops.aten
MOST = 2**31  # a batch size without upper bound
CODE = ("/aotinductor/", "custom_obj", "opaque_obj")  # members of an archive that run code of their own when loaded
TRAINING: dict[Any, int] = {aten.dropout.default: 2, aten.dropout_.default: 2, aten.batch_norm.default: 5}
"""Ops with a training switch, and which argument it is."""
UNSAFE = "holds compiled code or pickled objects, which could run anything on loading. Export the model without them"
LOGGERS = ("torch.export", "torch.export.pt2_archive._package", "torch._export.serde.serialize")
SAFE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def exported(path: Path) -> nn.Module:
    """The model in a .pt2 file. Raises ModelError; warns where the model was exported in train mode.

    A .pt2 file is a program. What it holds of compiled code and pickled objects is refused, but its graph is run:
    open only files whose maker you trust.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    _refuse_code(path)
    program = _read(path)
    image = _only_input(program, path)
    if _in_train_mode(program):
        told = "dropout and batch norm act as in training; export it after model.eval()"
        warn(f"{path.name} was exported in train mode: {told}")
    with _quiet_reading():
        model = torch.export.unflatten(program)
    return _fixed(model, image.meta["val"], program)


def _refuse_code(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        advice = "it is truncated, or torch.export.save did not write it"
        raise ModelError(f"{path} can't be read as a .pt2 file: {advice}") from error
    if any(mark in name for name in names for mark in CODE):
        raise ModelError(f"{path} {UNSAFE}")


def _read(path: Path) -> ExportedProgram:
    try:
        with _quiet_reading():
            return torch.export.load(path)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path} {UNSAFE}") from error
    except Exception as error:
        advice = "export it anew, with this torch and on the CPU"
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(f"torch {torch.__version__} can't load {path}; {advice} ({said})") from error


@contextmanager
def _quiet_reading() -> Iterator[None]:
    """torch's own reader would unpickle anything where safe loading fails; and it logs and warns about itself."""
    with ExitStack() as stack:
        stack.enter_context(_environment(SAFE, "1"))
        for logger in map(logging.getLogger, LOGGERS):
            stack.callback(setattr, logger, "disabled", logger.disabled)
            logger.disabled = True
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _only_input(program: ExportedProgram, path: Path) -> torch.fx.Node:
    names = program.graph_signature.user_inputs
    nodes: list[torch.fx.Node] = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in names]
    if len(nodes) != 1 or not isinstance(nodes[0].meta.get("val"), Tensor) or nodes[0].meta["val"].ndim < 2:
        raise ModelError(f"{path} takes {len(names)} inputs ({', '.join(map(str, names))}); wanted one batch of inputs")
    return nodes[0]


def _in_train_mode(program: ExportedProgram) -> bool:
    """Whether the graph holds an op whose training switch is on, or writes running statistics."""
    on = (len(n.args) > TRAINING.get(n.target, 99) and n.args[TRAINING[n.target]] is True for n in program.graph.nodes)
    return bool(program.graph_signature.buffers_to_mutate) or any(on)


class Exported(nn.Module):
    """Mixed into an unflattened model: it takes any number of rows, and refuses train mode, which it does not have.

    `exported_rows` are the least and the most rows that the exported graph takes. Fewer are padded with copies of the
    last row, more are run in parts; both are cut from every output whose first axis is the batch.
    """

    exported_rows: tuple[int, int]
    exported_shape: tuple[int, ...]

    def train(self, mode: bool = True) -> Exported:
        if mode:
            raise ModelError(
                "a .pt2 model is fixed as it was exported and has no train mode; load its code to train it"
            )
        for module in self.modules():
            module.training = False
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Exported:
        new = memo[id(self)] = type(self).__new__(type(self))
        with _quiet_reading():
            new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return new

    def forward(self, x: Tensor) -> Any:
        least, most = self.exported_rows
        if len(x) == 0:
            raise InputError("an exported model can't take an empty batch")
        if least <= len(x) <= most:
            return super().forward(x)
        parts = [self._padded(part, least) for part in torch.split(x, most)]
        return pytree.tree_map(lambda *hs: torch.cat(hs) if isinstance(hs[0], Tensor) else hs[0], *parts)

    def _padded(self, x: Tensor, size: int) -> Any:
        n, size = len(x), max(size, len(x))
        full = torch.cat([x, x[-1:].expand(size - n, *x.shape[1:])])
        out = super().forward(full)
        return pytree.tree_map(lambda h: h[:n] if isinstance(h, Tensor) and h.ndim and len(h) == size else h, out)


def _fixed(model: Any, image: Tensor, program: ExportedProgram) -> nn.Module:
    model.__class__ = type(f"Exported{type(model).__name__}", (Exported, type(model)), {})
    model.exported_rows = _bounds(image.shape[0], program)
    model.exported_shape = tuple(int(s) for s in image.shape[1:] if isinstance(s, int))
    return model.eval()  # type: ignore[no-any-return]


def _bounds(rows: Any, program: ExportedProgram) -> tuple[int, int]:
    if isinstance(rows, int):
        return rows, rows
    limits = program.range_constraints.get(rows.node.expr)
    if limits is None:  # an expression such as 2*n: torch checks it at each call
        return 1, MOST
    least, most = (int(v) if v.is_Integer else MOST for v in (limits.lower, limits.upper))
    return max(1, least), most
