"""Cards: the whole description of each method.

Validation, `unboxed run`, `methods`, `explain` and `attack`, the report, the docs and the contract tests are made from
cards: nothing lists methods by hand. A method of a user's own that has a card takes part in all of them.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial, wraps
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints
from weakref import WeakKeyDictionary, ref

from .argument_names import naming_arguments
from .errors import InputError
from .settings import Setting, settings_of
from .spellings import taking_other_spellings
from .validation import nearest_names, normalized_name

MAX_LISTED_METHODS = 30  # in an error about an unknown name
MethodT = TypeVar("MethodT", bound=Callable[..., Any])
LOG = logging.getLogger("unboxed")
FAMILIES = ("activations", "synthesis", "attribution", "adversarial", "influence", "concepts", "language", "robustness")
ENTRY_POINT_GROUP = "unboxed.methods"  # the group in which an installed package names the modules of its methods

DESCRIPTION_BY_NEED = {
    "pixels": "inputs that are images alone (Pixels)",
    "tokens": "inputs that are images alone (Pixels) or texts (Tokens)",
    "images": "one image among the inputs",
    "relu": "ReLUs",
    "attention": "attention layers",
    "linear end": "a linear layer that gives the logits",
    "texts": "inputs that are texts (Tokens)",
    "generator": "an image as its output: a generator",
}
DESCRIPTION_BY_AXIOM = {
    "contribution": "on a linear model, exactly w * (x - baseline)",
    "completeness": "sums to score(x) - score(baseline)",
    "dummy": "what the model ignores gets exactly zero",
    "symmetry": "what plays the same part with the same value gets the same share",
}
DESCRIPTION_BY_RETURN_KIND = {
    "attribution": "a map with one value per input value or per position",
    "images": "images, with their frames where they were asked for",
    "adversarial": "adversarial images, with success, distance and queries",
    "texts": "texts with words swapped, with success, swaps and queries",
    "table": "numbers in rows and columns",
    "embedding": "points in two dimensions",
    "curve": "numbers along an axis",
    "influence": "a score of each training example for each query",
    "activations": "activations of layers, or parts of inputs that they come from",
}


@dataclass(frozen=True)
class Card:
    """The description of a method, attached to it as `method.card`.

    `example(method, box, x, y)` is its smallest useful call. `settings` are read from the method's annotations.
    """

    method: Callable[..., Any]
    family: str
    name: str
    source: str
    shows: str
    does_not_show: str
    example: Callable[..., Any]
    needs: tuple[str, ...] = ()  # keys of DESCRIPTION_BY_NEED
    exempt: Mapping[str, str] = field(default_factory=dict)  # {contract: the reason why it does not apply}
    axioms: tuple[str, ...] = ()  # of attribution, that it keeps exactly: keys of DESCRIPTION_BY_AXIOM
    texts: bool = False  # takes a model of texts (Tokens), too
    minimal: bool = False  # of attacks: searches for the smallest change, instead of any within eps
    gradient_free: bool = False  # of attacks: needs the model's outputs alone
    default_attack: Mapping[str, Any] | None = (
        None  # settings with which evaluations run it by default; None: they do not
    )
    runs: Callable[[Mapping[str, Any]], float] = lambda settings: 1  # model runs per input, from the settings
    order: int = 100  # small numbers first where methods are listed or not all can be run
    patents: str = ""  # what the method's authors claim of patents
    aliases: tuple[str, ...] = ()  # other names that people know it by: "saliency"
    first_choice: bool = False  # of attribution: one of the few that `explain` runs where no method is named

    @property
    def key(self) -> str:
        """The name by which the method is called: `lime`."""
        return getattr(self.method, "__name__", self.name)

    @property
    def settings(self) -> Mapping[str, Setting]:
        """{name: setting} of the method's parameters, without its box."""
        return settings_of(self.method)

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms that an attack takes, as its setting `norm` lists them; empty where it lists none."""
        return tuple(map(str, self.settings["norm"].choices)) if "norm" in self.settings else ()

    @property
    def returns(self) -> str:
        """What the method gives, a key of DESCRIPTION_BY_RETURN_KIND, as its result type says, else "table"."""
        if self.method not in _RETURN_KIND_BY_METHOD:
            result = get_type_hints(self.method).get("return")
            result = get_args(result)[0] if get_origin(result) is tuple else result  # one result per layer
            _RETURN_KIND_BY_METHOD[self.method] = str(getattr(result, "returns", "table"))
        return _RETURN_KIND_BY_METHOD[self.method]

    @property
    def defaults(self) -> dict[str, Any]:
        return {name: s.default for name, s in self.settings.items() if not s.is_required}

    def n_model_runs(self, **settings: Any) -> float:
        """About how many model runs one input takes, with these settings in place of the defaults."""
        return float(self.runs({**self.defaults, **settings}))


_RETURN_KIND_BY_METHOD: WeakKeyDictionary[Callable[..., Any], str] = WeakKeyDictionary()  # hints are slow to read


def card(
    *,
    name: str,
    source: str,
    shows: str,
    does_not_show: str,
    example: Callable[..., Any],
    family: str | None = None,
    needs: tuple[str, ...] = (),
    exempt: Mapping[str, str] | None = None,
    axioms: tuple[str, ...] = (),
    texts: bool = False,
    minimal: bool = False,
    gradient_free: bool = False,
    default_attack: Mapping[str, Any] | None = None,
    runs: Callable[[Mapping[str, Any]], float] | float = 1,
    order: int = 100,
    patents: str = "",
    aliases: tuple[str, ...] = (),
    first_choice: bool = False,
) -> Callable[[MethodT], MethodT]:
    """Attach a card to a method and return the method, which then takes other spellings of its settings (`spellings`).

    Args:
        name: The method's name as people write it: "Grad-CAM++".
        source: Paper and equation.
        shows: What its result shows, in one sentence.
        does_not_show: What one might read into it that it does not show, in one sentence.
        example: `example(method, box, x, y)`, its smallest useful call on images x (N, C, H, W) and classes y (N,).
        family: "attribution", "adversarial", ...; None takes the package that the method lies in. A method of your own
            that names none is listed as "own".
        needs: What the model or its inputs must have, of `DESCRIPTION_BY_NEED`.
        exempt: {contract: reason} of contracts that cannot hold for it.
        axioms: Those of `DESCRIPTION_BY_AXIOM` that it keeps exactly.
        texts: It takes a model of texts (Tokens), too. Without it a text is refused.
        minimal: Of an attack: it searches for the smallest change; False: for any within eps.
        gradient_free: Of an attack: it needs the model's outputs alone.
        default_attack: Of an attack: the settings with which `robustness.evaluate` runs it where no attack is named.
            None: it runs only where it is named.
        runs: Model runs per input: a number, or a function of the settings, `lambda s: s["n_samples"]`.
        order: Place among the methods of its family, small numbers first.
        patents: What the method's authors claim of patents.
        aliases: Other names that people know it by, such as "saliency"; case and punctuation do not matter.
        first_choice: Of attribution: it is one of the few that `explain` runs where no method is named.

    Raises:
        InputError: for needs, axioms or a family that do not exist.

    Example:
        >>> from unboxed.cards import card
        >>> @card(name="Brightness", family="attribution", source="-", shows="How bright it is.", does_not_show="Why.",
        ...       example=lambda method, box, x, y: method(box, x))
        ... def brightness(box, x, target=None):
        ...     return x.mean((1, 2, 3))
        >>> brightness.card.family
        'attribution'
    """
    _check_allowed_values("needs", needs, DESCRIPTION_BY_NEED)
    _check_allowed_values("axioms", axioms, DESCRIPTION_BY_AXIOM)
    if family is not None:
        _check_allowed_values("family", [family], [*FAMILIES, "own"])

    def attach_card(method: MethodT) -> MethodT:
        is_ours = str(method.__module__).startswith("unboxed.")
        method = taking_other_spellings(_outside_autocast(naming_arguments(method)) if is_ours else method)
        method.card = Card(  # type: ignore[attr-defined]
            method,
            family or _family_of_method(method),
            name,
            source,
            shows,
            does_not_show,
            example,
            needs,
            dict(exempt or {}),
            axioms,
            texts,
            minimal,
            gradient_free,
            default_attack,
            runs if callable(runs) else lambda settings: runs,
            order,
            patents,
            aliases,
            first_choice,
        )
        _register_method(method)
        return method

    return attach_card


def _outside_autocast(method: MethodT) -> MethodT:
    """The method, run outside the caller's torch.autocast, which would round its own products and sums.

    A model in mixed precision is a box with `autocast=`.
    """

    from .autocast import leaving_autocast  # imports torch, as a module with a method does

    @wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        with leaving_autocast():
            return method(*args, **kwargs)

    return cast(MethodT, run)


def _check_allowed_values(what: str, values: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted({*values} - {*known}):
        raise InputError(f"a card's {what} must be of {', '.join(known)}; got {', '.join(unknown)}")


def _family_of_method(method: Callable[..., Any]) -> str:
    package, _, module = str(method.__module__).partition(".")  # None where code was executed without a module
    return module.partition(".")[0] if package == "unboxed" and module else "own"


# -- all methods -------------------------------------------------------------------------------------------------------

_REGISTERED_METHOD_REFS: dict[
    tuple[str, str], Callable[[], Any]
] = {}  # weak references: a method lives as long as its module


def _register_method(method: Callable[..., Any]) -> None:
    place = (str(method.__module__), str(getattr(method, "__qualname__", id(method))))
    _REGISTERED_METHOD_REFS[place] = ref(method, partial(_unregister_method, place))


def _unregister_method(place: tuple[str, str], reference: ref[Any]) -> None:
    if _REGISTERED_METHOD_REFS.get(place) is reference:  # another of the same name may have come since
        del _REGISTERED_METHOD_REFS[place]


def cards(family: str | None = None) -> tuple[Card, ...]:
    """The cards of all methods, or of one family's; a user's own methods come last.

    Own methods are those that have been given a card in this process, and those of installed packages that name the
    module of their methods in the entry point group "unboxed.methods".

    Args:
        family: "attribution", "adversarial", ...; None takes all.

    Returns:
        One `Card` per method, family by family, by `order`.

    Example:
        >>> import unboxed as ub
        >>> [c.key for c in ub.cards("attribution")][:2]
        ['gradient', 'grad_cam']
    """
    for name in FAMILIES:
        importlib.import_module(f"unboxed.{name}")
    _import_entry_point_methods()
    return registered_cards(family)


def registered_cards(family: str | None = None) -> tuple[Card, ...]:
    """The cards of the methods that are imported, in the order of `cards`; nothing else is imported."""
    methods = [method for reference in [*_REGISTERED_METHOD_REFS.values()] if (method := reference()) is not None]
    own = {id(m): not str(m.__module__).startswith("unboxed.") for m in methods}
    families = [*FAMILIES, "own"]
    methods.sort(key=lambda m: (own[id(m)], families.index(m.card.family), m.card.order))
    return tuple(m.card for m in methods if family in (None, m.card.family))


def _import_entry_point_methods() -> None:
    """Import the modules of installed packages' methods; one that fails is logged, and costs no other."""
    for point in _entry_points_in(tuple((place, _modification_time(place)) for place in sys.path)):
        try:
            point.load()
        except Exception:
            LOG.warning("the methods of %r could not be loaded", point.value, exc_info=True)


@lru_cache(maxsize=1)
def _entry_points_in(places: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """Those of the packages in `sys.path`, read again where a package was added: each reading opens a file of each."""
    return tuple(entry_points(group=ENTRY_POINT_GROUP))


def _modification_time(place: str) -> int:
    try:
        return os.stat(place or ".").st_mtime_ns
    except OSError:
        return 0


def card_of(method: Callable[..., Any] | None) -> Card | None:
    """The card of a method, whatever settings were given with it (`functools.partial`); None for one without."""
    while isinstance(method, partial):
        method = method.func
    attached = getattr(method, "card", None)
    return attached if isinstance(attached, Card) else None


def find_card(name: str, among: Iterable[Card] | None = None) -> Card:
    """The card of a method's name, or of its written name ("Grad-CAM++", "grad_cam_plus_plus"), or of an alias.

    Raises InputError with the nearest names where there is none.
    """
    among = cards() if among is None else tuple(among)
    if (found := find_card_or_none(name, among)) is None:
        raise InputError(f"there is no method {name!r}; {method_suggestion_text(name, among)}")
    return found


def find_card_or_none(name: str, among: Iterable[Card]) -> Card | None:
    """The card of a method's name, written name or alias; case, punctuation and "Attack" at the end do not matter."""
    among, plain = tuple(among), _plain_name(name)
    for words in (lambda c: (c.key,), lambda c: (c.name,), lambda c: c.aliases):
        if found := next((c for c in among if plain in map(_plain_name, words(c))), None):
            return found
    return None


def _plain_name(name: str) -> str:
    plain = normalized_name(name)
    return plain.removesuffix("attack") or plain


def method_suggestion_text(name: str, among: Iterable[Card]) -> str:
    """The end of an error about an unknown method: those whose name or alias is spelled like it, else all, if few."""
    key_by_word = {word: c.key for c in among for word in (*c.aliases, c.name, c.key)}
    if nearest := dict.fromkeys(key_by_word[word] for word in nearest_names(name, key_by_word)):
        return f"did you mean {' or '.join(map(repr, nearest))}?"
    if len(keys := list(dict.fromkeys(key_by_word.values()))) > MAX_LISTED_METHODS:
        return f"`unboxed methods` lists the {len(keys)} that there are"
    return f"there are {', '.join(map(repr, keys))}"
