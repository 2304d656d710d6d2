"""Compare models: one method on several boxes, and one box per checkpoint of a training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from .box import Box
from .engine.result_views import ResultViewsMixin
from .errors import InputError, ModelError, warn
from .inputs.examples import make_repeatable
from .loading.checkpoints import weights

T = TypeVar("T")


class Comparison(dict[str, T], ResultViewsMixin):
    """{model: result}: a dict that shows itself, maps and images side by side on one scale.

    >>> Comparison(trained=1, untrained=2)
    Comparison(2 models: trained: 1, ...)
    """

    def __repr__(self) -> str:
        first = ", ".join(f"{name}: {result!r}" for name, result in islice(self.items(), 1))
        return f"{type(self).__name__}({len(self)} model{'s' * (len(self) != 1)}: {first}{', ...' * (len(self) > 1)})"


CheckpointSource = str | Path | Mapping[str, Any]
"""A file of weights, or a state dict."""


def compare(
    boxes: Mapping[str, Box] | Iterable[tuple[str, Box]], method: Callable[..., T], *args: Any, **kwargs: Any
) -> Comparison[T]:
    """Call one method on several boxes with the same arguments.

    Ctrl-C keeps the results of the boxes that are done.

    Args:
        boxes: {name: box}, or an iterable of (name, box), such as `epochs`: each box is then freed before the next.
        method: The method, called as `method(box, *args, **kwargs)`.
        args: Its arguments after the box.
        kwargs: Its keyword arguments.

    Returns:
        {name: result}: a dict that shows itself, maps and images side by side on one scale.

    Raises:
        InputError: when the models do not take the same inputs or have different numbers of outputs.

    Example:
        >>> import unboxed as ub
        >>> weights = {"trained": "trained", "untrained": None}
        >>> boxes = {name: ub.Box(*ub.zoo.load("digits-cnn", weights=w)) for name, w in weights.items()}
        >>> x, y = ub.data.digits("test").first(4)
        >>> maps = ub.compare(boxes, ub.attribution.gradient, x, y)
        >>> {name: tuple(m.shape) for name, m in maps.items()}
        {'trained': (4, 1, 28, 28), 'untrained': (4, 1, 28, 28)}
    """
    if not callable(method):
        raise InputError(f"the method comes second, its arguments after it: compare(boxes, method, x); got {method!r}")
    results = Comparison[T]()
    first: tuple[str, Box] | None = None
    if isinstance(boxes, Mapping):
        for pair in boxes.items():  # before any is run
            _check_same_inputs(next(iter(boxes.items())), pair)
    for pair in boxes.items() if isinstance(boxes, Mapping) else boxes:
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise InputError(f"boxes must be {{name: Box}}, or pairs (name, Box); got {type(pair).__name__}")
        name, box = pair
        if first is None and isinstance(box, Box):
            args = tuple(make_repeatable(value, box.inputs) for value in args)
        first = first or (name, box)
        _check_same_inputs(first, (name, box))
        results[name] = method(box, *args, **kwargs)
        if getattr(results[name], "interrupted", False):
            warn(f"interrupted: {name!r} is incomplete, and the models after it were not run")
            break
    if not results:
        raise InputError("there is no model to compare: give {name: box}")
    return results


def _check_same_inputs(first: tuple[str, Box], second: tuple[str, Box]) -> None:
    for name, box in (first, second):
        if not isinstance(box, Box):
            raise InputError(f"boxes must be {{name: Box}}; {name!r} is a {type(box).__name__}")
    (name_a, box_a), (name_b, box_b) = first, second
    kinds = [type(box.inputs).__name__ for box in (box_a, box_b)]
    if kinds[0] != kinds[1] or box_a.inputs.shape != box_b.inputs.shape:
        descriptions = [
            f"{n!r} {kind}{tuple(box.inputs.shape)}"
            for n, kind, box in zip((name_a, name_b), kinds, (box_a, box_b), strict=True)
        ]
        raise InputError(
            f"models that are compared must take the same inputs; got {descriptions[0]} and {descriptions[1]}"
        )
    if len(box_a.classes) != len(box_b.classes):
        raise InputError(
            f"{name_a!r} has {len(box_a.classes)} outputs and {name_b!r} {len(box_b.classes)}: a target means another"
        )


def epochs(
    box: Box, checkpoints: Mapping[str, CheckpointSource] | Sequence[CheckpointSource]
) -> Iterator[tuple[str, Box]]:
    """A box for each checkpoint of a training: a copy of the box's model with these weights.

    Each is read when its turn comes, as `unboxed.load` reads weights: nothing is unpickled. The model itself is not
    changed.

    Args:
        box: The box of the model.
        checkpoints: Files of weights or state dicts, in a list or as {name: ...}. Without names, the names of the files
            are used, or numbers from 1.

    Yields:
        (name, box).

    Raises:
        ModelError: when a file cannot be read or does not fit the model.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> untrained, _ = ub.zoo.load("digits-cnn", weights=None)
        >>> x, y = ub.data.digits("test").first(100)
        >>> both = {"start": untrained.state_dict(), "end": box.model.state_dict()}
        >>> {name: int((b.predict(x) == y).sum()) > 50 for name, b in ub.epochs(box, both)}
        {'start': False, 'end': True}
    """
    for name, checkpoint in _checkpoints_by_name(checkpoints):
        yield name, _box_from_checkpoint(box, checkpoint)


def _checkpoints_by_name(
    checkpoints: Mapping[str, CheckpointSource] | Sequence[CheckpointSource],
) -> list[tuple[str, CheckpointSource]]:
    if isinstance(checkpoints, (str, Path)) or (isinstance(checkpoints, Mapping) and _is_state_dict(checkpoints)):
        raise InputError("give several checkpoints: a list of files or state dicts, or {name: file or state dict}")
    if isinstance(checkpoints, Mapping):
        return [(str(name), value) for name, value in checkpoints.items()]
    stems = [Path(c).stem if isinstance(c, (str, Path)) else str(i) for i, c in enumerate(checkpoints, 1)]
    if len(set(stems)) < len(stems):  # epoch1/weights.pt, epoch2/weights.pt
        stems = [str(c) if isinstance(c, (str, Path)) else f"state {i}" for i, c in enumerate(checkpoints, 1)]
    return list(zip(stems, checkpoints, strict=True))


def _is_state_dict(value: Mapping[str, Any]) -> bool:
    return any(isinstance(h, Tensor) for h in value.values())


def _box_from_checkpoint(box: Box, checkpoint: CheckpointSource) -> Box:
    try:
        model = copy.deepcopy(box.model)
    except Exception as error:
        raise ModelError(f"this model can't be copied, which each checkpoint needs: {error}") from error
    weights(model, checkpoint)
    return box.with_model(model)
