"""Settings of a method as words on a command line, and the values that they mean for an opened model."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from ..errors import InputError
from ..settings import Setting
from .parsing import parse_class, parse_fraction

if TYPE_CHECKING:
    from ..box import Box
    from ..cards import Card

TEXTS_THAT_MEAN_NONE = ("none", "None", "")
ITEM_TYPE_BY_KIND: Mapping[str, Callable[[str], Any]] = {"ints": int, "floats": float, "strs": str}


def parse_setting_value(setting: Setting, text: str, box: Box, label: str | None = None) -> Any:
    """What `text` means for a setting: a number, a choice, a layer, a class by name, an objective, an image file.

    `label` is the column of labels of tables.

    Raises InputError that names the option, what came and what was wanted.
    """
    if setting.optional and text in TEXTS_THAT_MEAN_NONE:
        return None
    if chosen := [choice for choice in setting.choices if str(choice) == text]:
        return chosen[0]
    if setting.kind == "layer":
        return _validated_layer_address(text, box)
    if setting.kind in ("choice", "str", "path"):
        setting.check(text)
        return text
    try:
        value = _parse_by_kind(setting, text, box, label)
    except InputError:
        raise
    except (ValueError, SyntaxError, ZeroDivisionError) as error:
        wanted = setting.range or setting.kind
        raise InputError(f"{option_name(setting.name)} must be {wanted}; got {text!r}") from error
    setting.check(value)
    return value


def single_or_several(card: Card, name: str, value: Any) -> Any:
    """The value; of a list of one number the number, where the method takes a number or several: `index=3`."""
    if card.settings[name].kind not in ("ints", "floats") or not isinstance(value, list) or len(value) != 1:
        return value
    return value[0] if type(value[0]) in get_args(get_type_hints(card.method)[name]) else value


def option_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _parse_by_kind(setting: Setting, text: str, box: Box, label: str | None) -> Any:
    if setting.kind in ("int", "seed"):
        return int(text)
    if setting.kind == "float":
        return parse_fraction(option_name(setting.name), text)
    if setting.kind == "bool":
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[
            _validated_yes_or_no_word(text)
        ]
    if setting.kind == "layers":
        return [_validated_layer_address(part.strip(), box) for part in text.split(",")]
    if setting.kind in ITEM_TYPE_BY_KIND:
        return [ITEM_TYPE_BY_KIND[setting.kind](part.strip()) for part in text.split(",")]
    if setting.kind in ("target", "labels", "objective"):
        return parse_objective(text) if "(" in text else _parse_classes(text, box)
    if setting.kind == "checkpoints":
        literal = _parse_literal(text)
        return [part.strip() for part in text.split(",")] if literal == text else literal
    if setting.kind == "inputs":
        from ..loading.input_files import read_inputs

        return read_inputs(text, box, 1).x
    if setting.kind == "data":
        from .parsing import open_inputs

        return open_inputs(text, box, label=label)
    if setting.kind == "concepts":
        return _parse_concepts(setting.name, text, box)
    return _parse_literal(text)


def _parse_concepts(setting_name: str, text: str, box: Box) -> dict[str, Any]:
    """Concepts by name: "stripes=photos/stripes,dots=photos/dots"."""
    from .parsing import open_inputs

    named = dict(part.partition("=")[::2] for part in text.split(","))
    if not all(name.strip() and spec.strip() for name, spec in named.items()):
        raise InputError(f"{option_name(setting_name)} wants NAME=DATA, separated by commas; got {text!r}")
    return {name.strip(): open_inputs(spec.strip(), box) for name, spec in named.items()}


def _validated_layer_address(address: str, box: Box) -> str:
    """A layer's address as it was given. Raises LayerError with the nearest names."""
    from ..objectives import INPUT_OUTPUT_ADDRESSES

    if address not in INPUT_OUTPUT_ADDRESSES:
        box.layers.resolve(address)
    return address


def _validated_yes_or_no_word(text: str) -> str:
    if text.lower() not in ("true", "yes", "1", "false", "no", "0"):
        raise InputError(f"wanted yes or no; got {text!r}")
    return text.lower()


def _parse_classes(text: str, box: Box) -> Any:
    """One class by name or number, or several separated by commas, as a tensor."""
    import torch

    if text in box.classes:
        return parse_class(text, box)
    indices = [parse_class(part.strip(), box) for part in text.split(",")]
    return indices[0] if len(indices) == 1 else torch.tensor(indices)


def parse_objective(text: str) -> Any:
    """An objective as it is written in Python: "logit(3)", "-channel('conv2', 5)", "logit(3) - logit(8)".

    Only the objectives of `unboxed`, numbers, strings and + - * / are taken; nothing is evaluated. Raises InputError.
    """
    return _evaluate_objective_node(ast.parse(text.strip(), mode="eval").body, text)


def _evaluate_objective_node(node: ast.expr, text: str) -> Any:
    from .. import objectives

    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_evaluate_objective_node(node.operand, text)
    if isinstance(node, ast.BinOp):
        left, right = _evaluate_objective_node(node.left, text), _evaluate_objective_node(node.right, text)
        operations: dict[type, Callable[[], Any]] = {
            ast.Add: lambda: left + right, ast.Sub: lambda: left - right,
            ast.Mult: lambda: left * right, ast.Div: lambda: left / right,
        }  # fmt: skip
        if type(node.op) in operations:
            return operations[type(node.op)]()
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        make = getattr(objectives, node.func.id, None)
        if callable(make) and not isinstance(make, type):
            keywords = {k.arg: _evaluate_objective_node(k.value, text) for k in node.keywords if k.arg}
            return make(*(_evaluate_objective_node(a, text) for a in node.args), **keywords)
    if isinstance(node, ast.Name):  # a layer's name without quotes: channel(conv2, 5)
        return node.id
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise InputError(f"an objective is written as logit(3) or channel('conv2', 5); got {text!r}") from None


def _parse_literal(text: str) -> Any:
    """A Python literal (numbers, strings, tuples, dicts), or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
