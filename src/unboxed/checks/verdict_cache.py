"""Verdicts cached from one run to the next, keyed by all that they depend on, so that none is stale."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..atomic_write import encode_utf8
from ..box import Box
from ..checkpointing import tensor_digest
from ..engine.box_fingerprint import box_fingerprint
from ..engine.perturb.baselines import Baseline
from ..engine.perturb.baselines import baseline as baseline_of
from ..engine.results import nonfinite_to_none
from ..engine.stable_repr import stable_repr
from ..errors import InputError
from ..objectives import Objective
from ..parameters import Target
from ..validation import valid_seed
from .methods import AttributionMethodFn
from .verdict import GRADES, MAX_DRAWS_PER_TEST, TestOutcome, Verdict, verdict


class VerdictCache:
    """Verdicts by their keys, as JSON text that is saved with a report. What cannot be read is ignored.

    A key is a digest of the model's weights and structure, the kind of inputs, the images and the model's outputs, the
    target, the method with its settings and its package's code, the seed and the code of Unboxed.
    """

    def __init__(self, text: str | bytes = b"") -> None:
        self._verdicts = dict(_read_verdicts(text))
        self._fingerprint: tuple[Box, bytes] | None = None
        self._digested: tuple[Box, Any, bytes] | None = None
        self.requested: dict[str, Verdict] = {}

    @classmethod
    def read(cls, path: Path) -> VerdictCache:
        """The verdicts that an earlier run saved in a file; none where it can't be read."""
        with suppress(OSError):
            return cls(path.read_bytes())
        return cls()

    def verdict(
        self,
        box: Box,
        x: Any,
        method: AttributionMethodFn,
        target: Target = None,
        *,
        max_draws: int = MAX_DRAWS_PER_TEST,
        map_: Tensor | None = None,
        baseline: Baseline = None,
        seed: int = 0,
    ) -> Verdict:
        """As `checks.verdict`, computed once. Lambdas and objectives have no key, and are judged again each time."""
        seed = valid_seed(seed)
        key = self._verdict_key(box, x, method, target, max_draws, seed, baseline)
        cached_verdict = self._verdicts.get(key) or verdict(
            box, x, method, target, map_=map_, max_draws=max_draws, baseline=baseline, seed=seed
        )
        if key:
            self.requested[key] = self._verdicts[key] = cached_verdict
        return cached_verdict

    def contains(
        self,
        box: Box,
        x: Any,
        method: AttributionMethodFn,
        target: Target = None,
        *,
        max_draws: int = MAX_DRAWS_PER_TEST,
        seed: int = 0,
    ) -> bool:
        """Whether that verdict is cached."""
        return self._verdict_key(box, x, method, target, max_draws, valid_seed(seed)) in self._verdicts

    def to_json(self) -> bytes:
        """The verdicts requested so far, to be saved."""
        verdicts = {key: v.to_dict() for key, v in self.requested.items()}
        return encode_utf8(json.dumps(nonfinite_to_none(verdicts), indent=1, ensure_ascii=False))

    def _verdict_key(
        self, box: Box, x: Any, method: AttributionMethodFn, target: Target, max_draws: int, seed: int,
        baseline: Baseline = None,
    ) -> str:  # fmt: skip
        description = _method_code_and_settings_or_none(method)
        if description is None or isinstance(target, Objective):
            return ""
        digest = hashlib.sha256(self._model_fingerprint(box))
        digest.update(self._input_and_output_digest(box, x))
        if isinstance(target, Tensor):
            digest.update(tensor_digest(target).encode())
        if baseline is not None:
            values = baseline_of(box, box.validate_inputs(x), baseline, seed=seed)
            digest.update(f"baseline {tensor_digest(values)}".encode())
        fixed_target = None if isinstance(target, Tensor) else target
        digest.update(encode_utf8(repr((description, fixed_target, max_draws, seed, package_code_digest()))))
        return digest.hexdigest()

    def _input_and_output_digest(self, box: Box, x: Any) -> bytes:
        """Of the inputs that were asked about last, once: each key needs it, and the outputs are a forward pass."""
        if self._digested is None or self._digested[0] is not box or self._digested[1] is not x:
            self._digested = (box, x, tensor_digest(box.validate_inputs(x), box(x)).encode())
        return self._digested[2]

    def _model_fingerprint(self, box: Box) -> bytes:
        if self._fingerprint is None or self._fingerprint[0] is not box:
            self._fingerprint = (box, box_fingerprint(box))
        return self._fingerprint[1]


@cache
def package_code_digest(name: str = "unboxed") -> str:
    """A digest of the package's code: a verdict of other code, of the method or of its tests, is not reused."""
    file = Path(getattr(sys.modules.get(name), "__file__", None) or "")
    digest = hashlib.sha256()
    for path in sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]:
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


def _method_code_and_settings_or_none(method: AttributionMethodFn) -> str | None:
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
    if any(not isinstance(v, (str, int, float, bool, Tensor, list, type(None))) for v in settings.values()):
        return None
    try:
        code = package_code_digest(function.__module__.partition(".")[0])
        return f"{stable_repr(function)}({stable_repr(settings)}) {code}"
    except InputError:
        return None


def _read_verdicts(text: str | bytes) -> Iterator[tuple[str, Verdict]]:
    try:
        for key, value in json.loads(text).items():
            if value["grade"] in GRADES:
                yield key, Verdict(**{**value, "tests": tuple(_read_test_outcome(t) for t in value["tests"])})
    except (ValueError, TypeError, KeyError, AttributeError):
        return


def _read_test_outcome(value: dict[str, Any]) -> TestOutcome:
    """JSON has no numbers for what `nonfinite_to_none` took out."""
    missing: dict[str, Any] = {"value": math.nan, "low": -math.inf, "high": math.inf}
    known: dict[str, Any] = {k: missing.get(k) if v is None else v for k, v in value.items()}
    return TestOutcome(**known)
