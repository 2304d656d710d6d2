"""Public docstrings teach: Args that name every parameter, Returns, an Example; settings have one first sentence."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import unboxed as ub
from unboxed import objectives
from unboxed.cards import FAMILIES
from unboxed.settings import settings_of

COVERED = (
    "activations", "adversarial", "attribution", "box", "checks", "comparing", "data", "inputs", "language", "loading",
    "objectives", "plots", "report", "robustness", "synthesis", "testing", "training", "zoo",
)  # fmt: skip
"""The packages whose docstrings are complete; `MISSES_OF` can be asked about all in NAMESPACES."""

CONSTRUCTED = (
    ub.Box, ub.Pixels, ub.Features, ub.MultiInput, objectives.Objective, ub.language.WordVectors,
    ub.language.BiasWords, ub.language.WordTest,
)  # fmt: skip
"""Classes that a user makes: their docstring has Args. Results need one that says what they are."""


def members(module: Any) -> dict[str, Any]:
    """The public functions and classes of a namespace that are defined in Unboxed."""
    found = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    return {n: v for n, v in found.items() if callable(v) and str(getattr(v, "__module__", "")).startswith("unboxed")}


def on_the_face(package: str) -> dict[str, Any]:
    return {n: v for n, v in members(ub).items() if v.__module__.startswith(f"unboxed.{package}")}


def methods_of(cls: type) -> dict[str, Any]:
    """The public methods of a class, and its `__call__`."""
    own = {n: f for n, f in vars(cls).items() if inspect.isfunction(f) and (n == "__call__" or not n.startswith("_"))}
    return {f"{cls.__name__}.{n}": f for n, f in own.items()}


MORE_OBJECTIVES = ("Objective", "color_distance", "dlr", "log_odds", "gram_matrix", "targeted_dlr")
NAMESPACES: dict[str, Callable[[], dict[str, Any]]] = {
    "box": lambda: {"Box": ub.Box, **methods_of(ub.Box)},
    "comparing": lambda: on_the_face("comparing"),
    "inputs": lambda: on_the_face("inputs"),
    "objectives": lambda: on_the_face("objectives") | {n: getattr(objectives, n) for n in MORE_OBJECTIVES},
    "loading": lambda: on_the_face("loading"),
    "report": lambda: on_the_face("report"),
    **{n: (lambda n=n: members(getattr(ub, n))) for n in FAMILIES},  # type: ignore[misc]
    **{
        n: (lambda n=n: members(getattr(ub, n)))
        for n in ("checks", "data", "language", "plots", "testing", "training", "zoo")
    },  # type: ignore[misc]
}


def entries(doc: str) -> dict[str, str]:
    """{parameter: its text} of the Args section of a Google-style docstring."""
    section = re.search(r"^Args:\n((?: +.*\n?|\n)*)", doc, re.MULTILINE)
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", section.group(1).rstrip()) if section else ():
        names, _, text = entry.strip().partition(":")
        found |= dict.fromkeys((n.strip(" *") for n in names.split(",")), " ".join(text.split()))
    return found


def misses_of(value: Any) -> Iterator[str]:
    """What the docstring of a function or class lacks."""
    doc = inspect.getdoc(value) or ""
    if not doc:
        yield "has no docstring"
    if not doc or (inspect.isclass(value) and value not in CONSTRUCTED):
        return
    parameters = [p for p in inspect.signature(value).parameters.values() if p.name not in ("self", "cls")]
    undocumented = [p.name for p in parameters if p.name not in entries(doc)]
    if undocumented:
        yield f"has no Args entry for {', '.join(undocumented)}"
    gives_nothing = inspect.isclass(value) or inspect.signature(value).return_annotation in (None, "None")
    if not gives_nothing and not re.search(r"^(Returns|Yields):$", doc, re.MULTILINE):
        yield "has no Returns"
    if not re.search(r"^Example:\n(.*\n)*? +>>> ", doc + "\n", re.MULTILINE):
        yield "has no Example"
    if hasattr(value, "card"):
        yield from _settings_misses(value, entries(doc))


def _settings_misses(method: Any, documented: dict[str, str]) -> Iterator[str]:
    for name, setting in settings_of(method).items():
        if not setting.help:
            yield f"{name} has no help in its annotation"
        elif not documented.get(name, "").startswith(setting.help):
            yield f"{name} is documented as {documented.get(name, '')[:60]!r}, its help is {setting.help!r}"


def all_misses(packages: tuple[str, ...]) -> list[str]:
    return [
        f"{package}.{name} {miss}"
        for package in packages
        for name, value in sorted(NAMESPACES[package]().items())
        for miss in misses_of(value)
    ]


def test_docstrings_teach() -> None:
    assert set(COVERED) <= set(NAMESPACES)
    assert all(NAMESPACES[package]() for package in COVERED)
    misses = all_misses(COVERED)
    assert not misses, "\n" + "\n".join(misses)


def scale(box: ub.Box, x: Any, factor: float = 2.0) -> Any:
    """Scale x.

    Args:
        box: The box.
        x: Inputs (N, ...) in the box's units,
            as a tensor.
    """


def test_a_miss_is_found() -> None:
    assert entries(inspect.getdoc(scale) or "") == {
        "box": "The box.", "x": "Inputs (N, ...) in the box's units, as a tensor."}  # fmt: skip
    assert list(misses_of(scale)) == ["has no Args entry for factor", "has no Returns", "has no Example"]
