"""Checks of settings: each returns the value, or raises InputError that says what was wanted."""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from hashlib import blake2b
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from .errors import InputError, LayerError

MAX_INT = 2**53  # of a number that counts something; larger ones are mistakes
MAX_SEED_BITS = 40  # larger seeds are folded: a key of a random stream has seed, row and step in 64 bits


def check_int(name: str, value: object, minimum: float = 0) -> int:
    """A whole number, `minimum` or more; any whole number where that is -inf."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        bound = f", {minimum} or more" if math.isfinite(minimum) else ""
        raise InputError(f"{name} must be a whole number{bound}; got {value!r}")
    if int(value) > MAX_INT:
        raise InputError(f"{name} must be a whole number, {MAX_INT:,} or less; got {value!r}")
    return int(value)


def check_float(
    name: str, value: object, above: float = -math.inf, below: float = math.inf, *,
    minimum: float = -math.inf, maximum: float = math.inf,
) -> float:  # fmt: skip
    """A finite number strictly between `above` and `below`, and from `minimum` to `maximum`, both included."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not is_real or not above < float(value) < below or not minimum <= float(value) <= maximum:  # type: ignore[arg-type]
        raise InputError(f"{name} must be a number{_bounds_text(above, below, minimum, maximum)}; got {value!r}")
    return float(value)  # type: ignore[arg-type]


def _bounds_text(above: float, below: float, minimum: float, maximum: float) -> str:
    """The bounds in words."""
    if math.isfinite(minimum):
        return (
            f" from {minimum:g} to {maximum:g}"
            if math.isfinite(maximum)
            else _join_bound_texts(f", {minimum:g} or more", below)
        )
    if math.isfinite(above) and math.isfinite(below):
        return f" between {above:g} and {below:g}, both excluded"
    lower_text = f" above {above:g}" if math.isfinite(above) else ""
    return (
        f"{lower_text}{' and' if lower_text else ','} {maximum:g} or less"
        if math.isfinite(maximum)
        else _join_bound_texts(lower_text, below)
    )


def _join_bound_texts(lower_text: str, below: float) -> str:
    return f"{lower_text}{' and' if lower_text else ''} below {below:g}" if math.isfinite(below) else lower_text


def valid_seed(seed: object) -> int:
    """A seed of random draws: any whole number. Negative and large ones are folded, always in the same way.

    A function that takes a seed uses the value that this returns.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise InputError(f"seed must be a whole number, of any size; got {seed!r}")
    value, modulus = int(seed), 1 << MAX_SEED_BITS
    if 0 <= value < 2 * modulus:  # a folded seed is not changed again
        return value
    return modulus + int.from_bytes(blake2b(b"%d" % value, digest_size=8).digest(), "big") % modulus


def count_class_names(classes: object) -> int | None:
    """How many class names were given; None for none, and for what `check_class_names` will refuse."""
    return len(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else None


def check_class_names(classes: object, n_outputs: int, n_before: int | None = None) -> tuple[str, ...]:
    """The names of n outputs, by default their numbers; the model had `n_before` outputs when it was opened."""
    values = range(n_outputs) if classes is None else classes
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError(f"classes must be the names of the {n_outputs} outputs, in their order; got {classes!r}")
    names = tuple(map(str, values))
    if len(names) != n_outputs:
        reopen_hint = f"It had {n_before} when it was opened; open it again: ub.Box(model, inputs, classes=...)"
        count_hint = "Give one per output, in their order, or None: outputs are then named by their numbers"
        hint = count_hint if n_before in (None, n_outputs) else reopen_hint
        raise InputError(f"the model has {n_outputs} outputs; got {len(names)} class names. {hint}")
    return names


def address_list(addresses: object) -> list[str]:
    """Layer addresses, one or many, as a list."""
    if isinstance(addresses, str):
        return [addresses]
    if not isinstance(addresses, Collection):
        raise LayerError(f"wanted the address of a layer, or a list of them; got {addresses!r}")
    return list(addresses)


NORM_NAME_BY_ORDER: Mapping[float, str] = {math.inf: "linf", 2.0: "l2", 1.0: "l1"}


def norm_name(norm: Any) -> Any:
    """The name of a norm that is spelled in another way: its order (2, `numpy.inf`), "Linf", "L_2"; others as they are.

    >>> norm_name(math.inf), norm_name(2), norm_name("L-inf"), norm_name("2"), norm_name("l3")
    ('linf', 'l2', 'linf', 'l2', 'l3')
    """
    if isinstance(norm, str):
        order = normalized_name(norm).removeprefix("l").replace("infinity", "inf")
        return next((name for name in NORM_NAME_BY_ORDER.values() if name == f"l{order}"), norm)
    is_number = isinstance(norm, Real) and not isinstance(norm, bool)
    return NORM_NAME_BY_ORDER.get(float(norm), norm) if is_number else norm


def normalized_name(name: str) -> str:
    """A name without case and punctuation: "Grad-CAM++" and "grad_cam_plus_plus" are one."""
    return "".join(c for c in name.casefold().replace("+", "plus") if c.isalnum())


def nearest_names(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of the names that are spelled like an unknown one, the nearest first."""
    by_spelling = {normalized_name(known): known for known in names}
    return [by_spelling[match] for match in get_close_matches(normalized_name(name), by_spelling)]


def listed_names(names: Iterable[object], max_listed: int = 8) -> str:
    """Names in quotes, the first ones of many.

    >>> listed_names("abc"), listed_names("abc", 2)
    ("'a', 'b', 'c'", "'a', 'b', ...")
    """
    names = list(names)
    return f"{', '.join(map(repr, names[:max_listed]))}{', ...' * (len(names) > max_listed)}"


def suggestion_text(name: str, names: Iterable[str], max_listed: int = 5) -> str:
    """The end of an error about an unknown name: "did you mean 'a' or 'b'?", or else "there are 'a', 'b', ..."."""
    names = list(names)
    if nearest := nearest_names(name, names):
        return f"did you mean {' or '.join(map(repr, nearest))}?"
    return f"there are {listed_names(names, max_listed)}"


def expand_home(path: str | os.PathLike[str]) -> Path:
    """The path, with ~ as the user's folder; "~name" of no user as it is."""
    return Path(os.path.expanduser(path))


def missing_path_text(path: str | os.PathLike[str], kind: str = "file") -> str:
    """An error about a path that does not exist: "there is no file a/b.pt", and those that are spelled like it."""
    return f"there is no {kind} {os.fspath(path)}{nearest_paths_text(path)}"


def add_sentence(text: str, more: str) -> str:
    """An error with a further part: after a question mark no semicolon.

    >>> add_sentence("there is no file a", "give b"), add_sentence("did you mean 'b'?", "give c")
    ('there is no file a; give b', "did you mean 'b'? give c")
    """
    return f"{text}{'' if text.endswith('?') else ';'} {more}"


def nearest_paths_text(path: str | os.PathLike[str]) -> str:
    """The end of an error about a path that does not exist: "; did you mean 'a/b.pth'?", or nothing."""
    nearest = " or ".join(repr(str(p)) for p in _nearest_paths(Path(path)))
    return f"; did you mean {nearest}?" if nearest else ""


def _nearest_paths(path: Path) -> list[Path]:
    """Existing paths that differ from `path` in the spelling of its first part that does not exist."""
    missing = next(p for p in (path, *path.parents) if os.path.isdir(p.parent))
    try:
        names = nearest_names(missing.name, os.listdir(missing.parent))
    except OSError:  # a folder that may not be read
        return []
    paths = [missing.with_name(name) / path.relative_to(missing) for name in names]
    return [p for p in paths if p.exists() and p != path]


REORDERED_INDEX_TEXT = (
    "the rows and their labels have one index in two orders; labels are matched by position, so put them in the order "
    "of the rows: y.loc[x.index]"
)


def is_index_reordered(x: Any, y: Any) -> bool:
    """Whether a table and its labels, of pandas, name the same rows in another order."""
    index, of_labels = (list(getattr(part, "index", ())) if hasattr(part, "to_numpy") else [] for part in (x, y))
    return index != of_labels and len(index) == len(of_labels) and {*index} == {*of_labels}
