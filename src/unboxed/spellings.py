"""Other spellings of settings whose meaning is plain: they are translated before the method runs.

`baselines=0` as captum has it, `norm=numpy.inf`, a module in place of its address. What a setting takes is said in its
annotation (`settings.AlsoNamed`, `settings.ReadAs`), and every setting that names layers takes modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, wraps
from inspect import signature
from typing import Any, TypeVar, cast

from .errors import InputError
from .settings import Setting, settings_of

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
LAYER_SETTING_KINDS = ("layer", "layers")


def taking_other_spellings(function: FunctionT) -> FunctionT:
    """The function itself where its settings have one spelling; else a wrapper that takes their others, too.

    For functions whose first parameter is the box. Raises InputError where a setting is given by two of its names.

    >>> import unboxed as ub
    >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
    >>> x, y = ub.data.digits("test").first(2)
    >>> ub.attribution.grad_cam(box, x, layer=box.model.relu2).layer
    'relu2'
    >>> ub.adversarial.fgsm(box, x, y, eps=.1, norm="Linf").norm
    'linf'
    """
    spellings = _other_setting_spellings(function)
    if spellings is None:
        return function

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not spellings.may_apply(args, kwargs):
            return function(*args, **kwargs)
        translated, named = spellings.translate(args, kwargs)
        return function(*translated, **named)

    return cast(FunctionT, call)


@dataclass(frozen=True)
class _Spellings:
    """The settings of a function that have other spellings, and the names of its parameters in their order."""

    names: tuple[str, ...]
    settings: Mapping[str, Setting]

    @cached_property
    def name_by_alias(self) -> dict[str, str]:
        return {alias: name for name, setting in self.settings.items() for alias in setting.aliases}

    def may_apply(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether some argument may be in another spelling. In most calls none is, and none is translated."""
        for name, value in (*zip(self.names, args, strict=False), *kwargs.items()):
            setting = self.settings.get(name)
            if setting is None:
                if name in self.name_by_alias:
                    return True
            elif not _is_plain(setting, value):
                return True
        return False

    def translate(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        return self._translate_positional(args, kwargs), self._translate_keywords(args, kwargs)

    def _translate_positional(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        named = zip(self.names, args, strict=False)
        read = [self._read(name, value, (*args, *kwargs.values())) for name, value in named]
        return [*read, *args[len(read) :]]

    def _translate_keywords(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        renamed = {self.name_by_alias.get(name, name): value for name, value in kwargs.items()}
        positional = {*self.names[: len(args)]}
        for alias in kwargs.keys() & self.name_by_alias.keys():
            name = self.name_by_alias[alias]
            if name in kwargs or name in positional:
                raise InputError(f"{alias}= is another name of {name}=; give one of them")
        return {name: self._read(name, value, (*args, *kwargs.values())) for name, value in renamed.items()}

    def _read(self, name: str, value: Any, values: Iterable[Any]) -> Any:
        setting = self.settings.get(name)
        if setting is None or _is_plain(setting, value):
            return value
        if setting.read is not None:
            return setting.read(value)
        return _addresses_of_modules(value, values) if setting.kind in LAYER_SETTING_KINDS else value


def _is_plain(setting: Setting, value: Any) -> bool:
    """Whether a setting's value surely has one spelling: it is none, or text that nothing reads."""
    return value is None or (isinstance(value, str) and setting.read is None)


def _other_setting_spellings(function: Callable[..., Any]) -> _Spellings | None:
    """None where no setting has another spelling, or the annotations name what cannot be looked up yet."""
    try:
        settings = settings_of(function)
    except NameError:
        return None
    several = {name: s for name, s in settings.items() if s.read or s.aliases or s.kind in LAYER_SETTING_KINDS}
    return _Spellings(tuple(signature(function).parameters), several) if several else None


def _addresses_of_modules(value: Any, values: Iterable[Any]) -> Any:
    """A layer, or a list of layers, with modules replaced by their addresses in the box among the arguments."""
    if isinstance(value, (list, tuple)):
        values = tuple(values)
        return [_addresses_of_modules(part, values) for part in value]
    if isinstance(value, str) or not callable(getattr(value, "named_modules", None)):
        return value
    tables = [v.layers for v in values if callable(getattr(getattr(v, "layers", None), "resolve", None))]
    table = next((t for t in tables if t.path_of_module(value) is not None), *tables[:1])
    return table.resolve(value) if table is not None else value
