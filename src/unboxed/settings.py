"""Settings: what each parameter of a method is, read once from its annotation.

    def pgd(box, x, *, eps: Annotated[float, AtLeast(0), Unit("pixel range"), "Largest distance from x."], ...):
        check_settings(pgd, locals())

One annotation is the source of the checks and their error texts, the options of `unboxed run`, `unboxed methods`, and
the tables of the docs. What many methods share is defined once, in `parameters`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import lru_cache, partial
from numbers import Integral
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary

from .errors import InputError
from .validation import REORDERED_INDEX_TEXT, check_float, check_int, is_index_reordered

SettingKind = Literal["int", "float", "bool", "str", "choice", "ints", "floats", "strs", "tensor", "path", "object",
               "checkpoints",
               "concepts", "inputs", "labels", "target", "objective", "layer", "layers", "data", "seed"]  # fmt: skip
"""What a setting holds: a plain value or several, weights, or (last line) what a command makes of words."""

NO_DEFAULT = inspect.Parameter.empty  # the default of a setting that has none


@dataclass(frozen=True)
class AtLeast:
    """A number that is `minimum` or more."""

    minimum: float


@dataclass(frozen=True)
class AtMost:
    """A number that is `maximum` or less."""

    maximum: float


@dataclass(frozen=True)
class Above:
    """A number that is more than `above`."""

    above: float


@dataclass(frozen=True)
class Below:
    """A number that is less than `below`."""

    below: float


@dataclass(frozen=True)
class Unit:
    """What a number counts or is measured in: "pixel range", "steps"."""

    unit: str


@dataclass(frozen=True)
class ValueRole:
    """What a setting holds, where its type does not say: ValueRole("layer") of a str that is a layer's address."""

    kind: SettingKind


@dataclass(frozen=True)
class AlsoNamed:
    """Another name by which a setting is taken: "baselines", as captum calls it."""

    alias: str


@dataclass(frozen=True)
class OrOnePerPart:
    """A number, or one for each of several inputs: a dict by name or a tuple, None for those without one."""


@dataclass(frozen=True)
class IfSeveral:
    """What to do for whom several values come where one is taken, as the end of the error."""

    advice: str


@dataclass(frozen=True)
class ReadAs:
    """How values in other spellings are read: a function that returns the value, and what it does not know as it is."""

    read: Callable[[Any], Any]


@dataclass(frozen=True)
class Setting:
    """One parameter of a method: its kind, range, unit, default and a line of help."""

    name: str
    kind: SettingKind = "object"
    default: Any = NO_DEFAULT
    help: str = ""
    unit: str = ""
    choices: tuple[Any, ...] = ()  # of kind "choice" all that is taken; else values that are taken besides numbers
    bounds: Mapping[str, float] = field(default_factory=dict)  # of `check_float`: minimum, maximum, above, below
    optional: bool = False  # None is taken
    aliases: tuple[str, ...] = ()  # other names by which it is taken
    read: Callable[[Any], Any] | None = None  # of values that are spelled in another way
    or_one_per_part: bool = False  # a dict or a tuple of such values, or 0 for none, is taken, too
    if_several: str = ""  # what to do where several values come

    @property
    def is_required(self) -> bool:
        return self.default is NO_DEFAULT

    @property
    def range(self) -> str:
        """The values that it takes, in words: "0 or more", '"linf" or "l2"', "above 0 and below 1"."""
        words = [text for key, text in self._bound_texts().items() if key in self.bounds]
        listed = " or ".join(map(_as_literal_text, self.choices))
        return " or ".join(filter(None, (" and ".join(words), listed)))

    def _bound_texts(self) -> dict[str, str]:
        b = self.bounds
        return {
            "minimum": f"{b.get('minimum', 0):g} or more",
            "above": f"above {b.get('above', 0):g}",
            "maximum": f"{b.get('maximum', 0):g} or less",
            "below": f"below {b.get('below', 0):g}",
        }

    def check(self, value: Any) -> None:
        """Raise InputError for a value of another kind or out of the range, saying what came and what was wanted."""
        if (value is None and self.optional) or (self.choices and _is_allowed_choice(value, self.choices)):
            return
        if self.or_one_per_part and isinstance(value, (Mapping, tuple, list)):
            for part_value in value.values() if isinstance(value, Mapping) else value:
                if isinstance(part_value, bool) or part_value != 0:
                    self.check(part_value)
            return
        if self.if_several and isinstance(value, (Mapping, tuple, list)):
            raise InputError(f"{self.name} is one number here; got {value!r}. {self.if_several}")
        if self.kind == "choice":
            raise InputError(f"{self.name} must be {_choices_text(self.choices)}; got {value!r}")
        if self.kind == "int":
            self._check_range(partial(check_int, minimum=-math.inf), value)
        elif self.kind == "float":
            self._check_range(check_float, value)
        elif self.kind == "bool" and not isinstance(value, bool):
            raise InputError(f"{self.name} must be True or False; got {value!r}")
        elif self.kind == "layers" and isinstance(value, Sized) and not len(value):
            rest = ", or leave it out" if self.optional else ""
            raise InputError(f"{self.name} must name a layer; got {value!r}. Give an address of `box.layers`{rest}")

    def _check_range(self, check: Callable[..., Any], value: Any) -> None:
        try:
            check(self.name, value, **self.bounds)
        except InputError as error:
            besides = [*map(_as_literal_text, self.choices), *["None"] * self.optional]
            if not besides:
                raise
            wanted, _, got = str(error).rpartition("; got ")
            raise InputError(f"{wanted}, or {' or '.join(besides)}; got {got}") from None


def _as_literal_text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _choices_text(choices: Sequence[Any]) -> str:
    *first, last = map(_as_literal_text, choices)
    return f"{', '.join(first)} or {last}" if first else last


def _is_allowed_choice(value: Any, choices: Collection[Any]) -> bool:
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = int(value)  # of NumPy's, too
    return isinstance(value, (str, int)) and any(type(value) is type(c) and value == c for c in choices)


def check_settings(method: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Check a method's settings by its annotations: its first line is `check_settings(method, locals())`.

    Raises InputError that names the first setting that is of another kind or out of its range.
    """
    if getattr(getattr(next(iter(values.values()), None), "inputs", None), "is_text", False):  # of the box
        check_takes_texts(method)
    _refuse_reordered_labels(method, values)
    for name, setting in _settings_with_checked_values(method):
        if (value := values.get(name, setting.default)) is not setting.default:
            setting.check(value)


def _refuse_reordered_labels(method: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raise InputError for labels, or values for each example, whose rows are the inputs' in another order.

    They belong to the first inputs: others, such as references or training examples, are no pairs with them.
    """
    tables = [name for name, value in values.items() if hasattr(value, "to_numpy")]
    if len(tables) < 2:
        return
    kinds = {name: setting.kind for name, setting in settings_of(method).items()}
    inputs = [values[name] for name in tables if kinds.get(name) in ("inputs", "data")]
    others = [values[name] for name in tables if kinds.get(name) in ("labels", "target", "object")]
    if any(is_index_reordered(x, y) for x in inputs[:1] for y in others):
        raise InputError(REORDERED_INDEX_TEXT)


TAKES_TEXTS_MARK = "takes_texts"
_SWAPS_ADVICE = (
    "swap words: ub.adversarial.hotflip(box, texts, labels), or `unboxed run hotflip --model MODEL --data texts.csv`"
)
TEXTS_ADVICE_BY_PACKAGE = {
    "adversarial": _SWAPS_ADVICE,
    "robustness": _SWAPS_ADVICE,
    "attribution": 'explain words: ub.explain(box, texts), or `unboxed explain --text "..." --model MODEL`',
    "concepts": "read labels from its layers: ub.language.probe_sentences(box, (texts, labels)), or `unboxed probe "
    "--model MODEL --data texts.csv`",
}
"""What is to be written of a model of texts, in place of a method of the package that takes none."""
AnyFunction = TypeVar("AnyFunction", bound=Callable[..., Any])


def takes_texts(function: AnyFunction) -> AnyFunction:
    """Mark a function that has no card, such as a check of methods, as one that takes models of texts, too."""
    setattr(function, TAKES_TEXTS_MARK, True)
    return function


def check_takes_texts(method: Callable[..., Any]) -> None:
    """Raise InputError for a method that would change a text's ids, or read what is not there."""
    card = getattr(method, "card", None)
    if not getattr(card, "texts", hasattr(method, TAKES_TEXTS_MARK)):
        name = getattr(card, "name", method.__name__)
        package = method.__module__.removeprefix("unboxed.").partition(".")[0]
        advice = TEXTS_ADVICE_BY_PACKAGE.get(package, "`unboxed methods` says which methods take them")
        raise InputError(f"{name} takes no texts, and this is a model of texts; {advice}")


KINDS_WITH_CHECKED_VALUES = ("int", "float", "bool", "choice", "layers")  # of which `Setting.check` refuses values


@lru_cache(maxsize=256)
def _settings_with_checked_values(method: Callable[..., Any]) -> tuple[tuple[str, Setting], ...]:
    """The settings whose values are checked, with their names."""
    return tuple((name, s) for name, s in settings_of(method).items() if s.kind in KINDS_WITH_CHECKED_VALUES)


_SETTINGS_BY_METHOD: WeakKeyDictionary[Callable[..., Any], dict[str, Setting]] = (
    WeakKeyDictionary()
)  # read once per method


def settings_of(method: Callable[..., Any]) -> dict[str, Setting]:
    """{name: setting} of all parameters of a method but its box, in their order.

    The method is a function whose first parameter is the box (`cka` has two).
    """
    if method not in _SETTINGS_BY_METHOD:
        _SETTINGS_BY_METHOD[method] = _settings_from_signature(method)
    return _SETTINGS_BY_METHOD[method]


def _settings_from_signature(method: Callable[..., Any]) -> dict[str, Setting]:
    hints = get_type_hints(_unwrap_partial(method), include_extras=True)
    parameters = inspect.signature(method).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {
        p.name: _setting_from_parameter(p, hints.get(p.name, Any))
        for p in named
        if not _is_box_parameter(p, hints.get(p.name))
    }


def _unwrap_partial(method: Callable[..., Any]) -> Callable[..., Any]:
    """The function below a `functools.partial` or an object that is called: its annotations can be read."""
    method = getattr(method, "func", method)
    return method if inspect.isroutine(method) else type(method).__call__


def _is_box_parameter(parameter: inspect.Parameter, hint: Any) -> bool:
    return parameter.name == "box" or getattr(hint, "__name__", "") == "Box"


def _setting_from_parameter(parameter: inspect.Parameter, hint: Any) -> Setting:
    marks = _flatten_annotations(hint)
    plain, optional, choices = _types_optional_and_choices(hint)
    bounds = {k: v for m in marks if isinstance(m, (AtLeast, AtMost, Above, Below)) for k, v in vars(m).items()}
    stated = [m.kind for m in marks if isinstance(m, ValueRole)]
    return Setting(
        name=parameter.name,
        kind=stated[0] if stated else _setting_kind_from_types(plain, choices),
        default=parameter.default,
        help=next((m for m in marks if isinstance(m, str)), ""),
        unit=next((m.unit for m in marks if isinstance(m, Unit)), ""),
        choices=choices,
        bounds=bounds,
        optional=optional or parameter.default is None,
        aliases=tuple(m.alias for m in marks if isinstance(m, AlsoNamed)),
        read=next((m.read for m in marks if isinstance(m, ReadAs)), None),
        or_one_per_part=any(isinstance(m, OrOnePerPart) for m in marks),
        if_several=next((m.advice for m in marks if isinstance(m, IfSeveral)), ""),
    )


def _flatten_annotations(hint: Any) -> list[Any]:
    """All that is said of a type, the outermost first: an alias's help may be replaced where it is used."""
    marks: list[Any] = []
    if get_origin(hint) is Annotated:
        hint, *said = get_args(hint)
        marks += reversed(said)
        marks += _flatten_annotations(hint)
    elif get_origin(hint) in (Union, UnionType):
        marks += [m for part in get_args(hint) for m in _flatten_annotations(part)]
    return marks


def _types_optional_and_choices(hint: Any) -> tuple[list[Any], bool, tuple[Any, ...]]:
    """The types of a hint, whether None is one of them, and the values of its Literals."""
    if get_origin(hint) is Annotated:
        return _types_optional_and_choices(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return [], None in get_args(hint), tuple(v for v in get_args(hint) if v is not None)
    if get_origin(hint) in (Union, UnionType):
        parts = [_types_optional_and_choices(part) for part in get_args(hint)]
        types = [t for types, _, _ in parts for t in types]
        return types, any(o for _, o, _ in parts), tuple(v for _, _, values in parts for v in values)
    return ([], True, ()) if hint is NoneType else ([hint], False, ())


SEQUENCE_KIND_BY_TYPE = {int: "ints", float: "floats", str: "strs"}


def _setting_kind_from_types(types: list[Any], choices: tuple[Any, ...]) -> Any:
    """The kind of the first type that has one."""
    if not types:
        return "choice" if choices else "object"
    names = {int: "int", float: "float", bool: "bool", str: "str"}
    if len(types) == 1 and types[0] in names:
        return names[types[0]]
    for hint in types:
        if (
            get_origin(hint) is not None
            and issubclass(get_origin(hint), Sequence)
            and get_args(hint)[0] in SEQUENCE_KIND_BY_TYPE
        ):
            return SEQUENCE_KIND_BY_TYPE[get_args(hint)[0]]
    type_names = {getattr(t, "__name__", "") for t in types}
    return "objective" if "Objective" in type_names else "tensor" if "Tensor" in type_names else "object"
