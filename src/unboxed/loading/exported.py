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
from ..validation import missing_path_text

aten = torch.ops.aten
UNLIMITED_BATCH_ROWS = 2**31  # a batch size without upper bound
ARCHIVE_CODE_MARKERS = ("/aotinductor/", "custom_obj", "opaque_obj")  # members of an archive that run code when loaded
TRAINING_ARGUMENT_INDEX_BY_OP: dict[Any, int] = {
    aten.dropout.default: 2,
    aten.dropout_.default: 2,
    aten.batch_norm.default: 5,
}
"""Ops with a training switch, and which argument it is."""
UNSAFE_ARCHIVE_TEXT = (
    "holds compiled code or pickled objects, which could run anything on loading. Export the model without them"
)
SILENCED_LOGGER_NAMES = ("torch.export", "torch.export.pt2_archive._package", "torch._export.serde.serialize")
SAFE_LOAD_ENVIRONMENT_VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def load_exported(path: Path) -> nn.Module:
    """The model in a .pt2 file. Raises ModelError; warns where the model was exported in train mode.

    A .pt2 file is a program. Compiled code and pickled objects in it are refused, but its graph is run: open only files
    from sources that you trust.
    """
    if not path.is_file():
        raise ModelError(missing_path_text(path))
    _check_archive_without_code(path)
    program = _read_exported_program(path)
    input_node = _single_input_node(program, path)
    if _is_in_train_mode(program):
        explanation = "dropout and batch norm act as in training; export it after model.eval()"
        warn(f"{path.name} was exported in train mode: {explanation}")
    with _safe_silent_loading():
        model = torch.export.unflatten(program)
    return _convert_to_exported_model(model, input_node.meta["val"], program)


def _check_archive_without_code(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        advice = "it is truncated, or torch.export.save did not write it"
        raise ModelError(f"{path} can't be read as a .pt2 file: {advice}") from error
    if any(marker in name for name in names for marker in ARCHIVE_CODE_MARKERS):
        raise ModelError(f"{path} {UNSAFE_ARCHIVE_TEXT}")


def _read_exported_program(path: Path) -> ExportedProgram:
    try:
        with _safe_silent_loading():
            return torch.export.load(path)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path} {UNSAFE_ARCHIVE_TEXT}") from error
    except Exception as error:
        advice = "export it again, with this torch and on the CPU"
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(f"torch {torch.__version__} can't load {path}; {advice} ({message})") from error


@contextmanager
def _safe_silent_loading() -> Iterator[None]:
    """Keep torch's reader from unpickling where safe loading fails, and silence its logs and warnings."""
    with ExitStack() as stack:
        stack.enter_context(_setting_environment_variable(SAFE_LOAD_ENVIRONMENT_VARIABLE, "1"))
        for logger in map(logging.getLogger, SILENCED_LOGGER_NAMES):
            stack.callback(setattr, logger, "disabled", logger.disabled)
            logger.disabled = True
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        yield


@contextmanager
def _setting_environment_variable(name: str, value: str) -> Iterator[None]:
    old_value = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if old_value is None:
            del os.environ[name]
        else:
            os.environ[name] = old_value


def _single_input_node(program: ExportedProgram, path: Path) -> torch.fx.Node:
    names = program.graph_signature.user_inputs
    nodes: list[torch.fx.Node] = [
        node for node in program.graph.nodes if node.op == "placeholder" and node.name in names
    ]
    if len(nodes) != 1 or not isinstance(nodes[0].meta.get("val"), Tensor) or nodes[0].meta["val"].ndim < 2:
        raise ModelError(f"{path} takes {len(names)} inputs ({', '.join(map(str, names))}); wanted one batch of inputs")
    return nodes[0]


def _is_in_train_mode(program: ExportedProgram) -> bool:
    """Whether the graph holds an op whose training switch is on, or writes running statistics."""
    training_flags = (
        len(node.args) > TRAINING_ARGUMENT_INDEX_BY_OP.get(node.target, 99)
        and node.args[TRAINING_ARGUMENT_INDEX_BY_OP[node.target]] is True
        for node in program.graph.nodes
    )
    return bool(program.graph_signature.buffers_to_mutate) or any(training_flags)


class ExportedModelMixin(nn.Module):
    """Mixed into an unflattened model: it takes any number of rows, and refuses train mode, which it does not have.

    `row_limits` are the smallest and the largest number of rows that the exported graph takes. Fewer are padded with
    copies of the last row, more are run in parts; padding is removed from every output whose first axis is the batch.
    """

    row_limits: tuple[int, int]
    input_shape: tuple[int, ...]

    def train(self, mode: bool = True) -> ExportedModelMixin:
        if mode:
            raise ModelError(
                "a .pt2 model is fixed as it was exported and has no train mode; load its code to train it"
            )
        for module in self.modules():
            module.training = False
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ExportedModelMixin:
        copied = memo[id(self)] = type(self).__new__(type(self))
        with _safe_silent_loading():
            copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def forward(self, x: Tensor) -> Any:
        min_rows, max_rows = self.row_limits
        if len(x) == 0:
            raise InputError("an exported model can't take an empty batch")
        if min_rows <= len(x) <= max_rows:
            return super().forward(x)
        parts = [self._forward_padded_batch(part, min_rows) for part in torch.split(x, max_rows)]
        return pytree.tree_map(
            lambda *outputs: torch.cat(outputs) if isinstance(outputs[0], Tensor) else outputs[0], *parts
        )

    def _forward_padded_batch(self, x: Tensor, min_rows: int) -> Any:
        n_rows, min_rows = len(x), max(min_rows, len(x))
        padded = torch.cat([x, x[-1:].expand(min_rows - n_rows, *x.shape[1:])])
        out = super().forward(padded)
        return pytree.tree_map(
            lambda tensor: (
                tensor[:n_rows] if isinstance(tensor, Tensor) and tensor.ndim and len(tensor) == min_rows else tensor
            ),
            out,
        )


def _convert_to_exported_model(model: Any, example_input: Tensor, program: ExportedProgram) -> nn.Module:
    model.__class__ = type(f"Exported{type(model).__name__}", (ExportedModelMixin, type(model)), {})
    model.row_limits = _batch_row_limits(example_input.shape[0], program)
    model.input_shape = tuple(int(length) for length in example_input.shape[1:] if isinstance(length, int))
    return model.eval()  # type: ignore[no-any-return]


def _batch_row_limits(rows: Any, program: ExportedProgram) -> tuple[int, int]:
    if isinstance(rows, int):
        return rows, rows
    limits = program.range_constraints.get(rows.node.expr)
    if limits is None:  # an expression such as 2*n: torch checks it at each call
        return 1, UNLIMITED_BATCH_ROWS
    min_rows, max_rows = (
        int(limit) if limit.is_Integer else UNLIMITED_BATCH_ROWS for limit in (limits.lower, limits.upper)
    )
    return max(1, min_rows), max_rows
