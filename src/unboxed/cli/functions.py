"""What `unboxed run` says of functions that are no methods: the command that does it, or where it is in Python."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib import import_module
from inspect import isroutine

from ..cards import FAMILIES, cards, find_card_or_none
from ..errors import InputError
from ..validation import normalized_name

FUNCTIONS_BY_COMMAND: Mapping[str, tuple[str, ...]] = {
    "attack": ("evaluate", "evaluate_outputs", "default_attacks"),
    "checks": ("shortcut",),
    "explain": ("verdict", "rank_methods", "explain_verdict"),
    "influence": ("influence_verdict", "gradient_store"),
    "probe": ("probe_sentences",),
    "train": ("fit",),
    "words": ("weat", "seat", "run_tests", "word_map", "direct_bias", "indirect_bias", "remaining_bias", "hard_debias"),
}
"""{command: functions of the library}; a function that is called as its command is not listed."""
PACKAGES_OF_FUNCTIONS = (*FAMILIES, "checks", "training", "data")


def refuse_function(name: str, commands: Collection[str]) -> None:
    """Raise InputError for the name of a command or a public function, which `unboxed run` does not call."""
    if find_card_or_none(name, cards()) is not None:
        return
    plain = normalized_name(name)
    done_by = [command for command in commands if plain == normalized_name(command)] or [
        command for command, functions in FUNCTIONS_BY_COMMAND.items() if plain in map(normalized_name, functions)
    ]
    if done_by:
        raise InputError(f"`unboxed run` calls methods, and {name} is none: use `unboxed {done_by[0]}`")
    for package in PACKAGES_OF_FUNCTIONS:
        module = import_module(f"unboxed.{package}")
        for function in dir(module):
            if plain == normalized_name(function) and isroutine(getattr(module, function)):
                raise InputError(
                    f"`unboxed run` calls methods, and {name} is none: call ub.{package}.{function} from Python"
                )
