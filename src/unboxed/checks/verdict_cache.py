"""Verdicts cached from one run to the next, keyed by all that they depend on, so that none is stale."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, is_dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

from torch import Tensor

from ..atomic_write import encode_utf8
from ..box import Box
from ..checkpointing import tensor_digest
from ..engine.stable_repr import stable_repr
from ..errors import InputError
from ..objectives import Objective
from ..parameters import Target
from ..validation import check_seed
from .methods import Method
from .verdict import GRADES, MIN_RANDOMIZED_PAIRS, Verdict, verdict


class VerdictCache:
    """Verdicts by their keys, as JSON text that is saved with a report. What cannot be read is ignored.

    A key is a digest of the model's weights and structure, the kind of inputs, the images and the model's outputs, the
    target, the method with its settings, the seed and this version of Unboxed.
    """

    def __init__(self, text: str | bytes = b"") -> None:
        self._verdicts = dict(_read_verdicts(text))
        self._fingerprint: tuple[Box, bytes] | None = None
        self.requested: dict[str, Verdict] = {}

    def verdict(
        self,
        box: Box,
        x: Any,
        method: Method,
        target: Target = None,
        *,
        pairs: int = MIN_RANDOMIZED_PAIRS,
        map_: Tensor | None = None,
        seed: int = 0,
    ) -> Verdict:
        """As `checks.verdict`, computed once. Lambdas and objectives have no key, and are judged again each time."""
        seed = check_seed(seed)
        key = self._key(box, x, method, target, pairs, seed)
        cached_verdict = self._verdicts.get(key) or verdict(
            box, x, method, target, map_=map_, min_pairs=pairs, seed=seed
        )
        if key:
            self.requested[key] = self._verdicts[key] = cached_verdict
        return cached_verdict

    def contains(
        self,
        box: Box,
        x: Any,
        method: Method,
        target: Target = None,
        *,
        pairs: int = MIN_RANDOMIZED_PAIRS,
        seed: int = 0,
    ) -> bool:
        """Whether that verdict is cached."""
        return self._key(box, x, method, target, pairs, check_seed(seed)) in self._verdicts

    def to_json(self) -> bytes:
        """The verdicts requested so far, to be saved."""
        verdicts = {key: v.to_dict() for key, v in self.requested.items()}
        return encode_utf8(json.dumps(nan_to_none(verdicts), indent=1, ensure_ascii=False))

    def _key(self, box: Box, x: Any, method: Method, target: Target, pairs: int, seed: int) -> str:
        description = _describe_method(method)
        if description is None or isinstance(target, Objective):
            return ""
        digest = hashlib.sha256(self._model_fingerprint(box))
        tensors = box.validate_inputs(x), box(x), *([target] if isinstance(target, Tensor) else [])
        digest.update(tensor_digest(*tensors).encode())
        fixed_target = None if isinstance(target, Tensor) else target
        digest.update(encode_utf8(repr((description, fixed_target, pairs, seed, version("unboxed")))))
        return digest.hexdigest()

    def _model_fingerprint(self, box: Box) -> bytes:
        if self._fingerprint is None or self._fingerprint[0] is not box:
            self._fingerprint = (box, fingerprint(box))
        return self._fingerprint[1]


def fingerprint(box: Box) -> bytes:
    """A digest of what determines the box's outputs: its modules, weights, buffers and inputs."""
    inputs = astuple(box.inputs) if is_dataclass(box.inputs) else box.inputs  # their repr leaves out what is long
    digest = hashlib.sha256(encode_utf8(repr((str(box), inputs, repr(box.model)))))
    for name, value in (*box.model.named_parameters(), *box.model.named_buffers()):
        digest.update(f"{name} {tensor_digest(value)}".encode())
    return digest.digest()


def _describe_method(method: Method) -> str | None:
    """The method, with its code where it is a user's, and its settings; None for one without a name (a lambda)."""
    settings: dict[str, object] = {}
    function: Callable[..., Any] = method
    while isinstance(function, partial):
        if function.args:
            return None
        settings = {**function.keywords, **settings}
        function = function.func
    if not inspect.isfunction(function) or "<" in function.__qualname__ or function.__module__ == "__main__":
        return None
    if any(not isinstance(v, (str, int, float, bool, type(None))) for v in settings.values()):
        return None
    try:
        return f"{stable_repr(function)}({sorted(settings.items())})"
    except InputError:
        return None


def _read_verdicts(text: str | bytes) -> Iterator[tuple[str, Verdict]]:
    try:
        entries = json.loads(text)
        for key, value in entries.items():
            figures = {k: math.nan if v is None else float(v) for k, v in value["figures"].items()}
            if value["grade"] in GRADES:
                reason, sentence = str(value["reason"]), str(value["sentence"])
                yield key, Verdict(str(value["method"]), value["grade"], reason, sentence, figures)
    except (ValueError, TypeError, KeyError, AttributeError):
        return


def nan_to_none(value: Any) -> Any:
    """The same with NaN and infinite numbers, which JSON does not have, as None."""
    if isinstance(value, dict):
        return {k: nan_to_none(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
