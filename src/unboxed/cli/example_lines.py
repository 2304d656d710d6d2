"""An `unboxed run` line for each method, as its card tells; words in capitals stand for what is one's own."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import get_origin, get_type_hints

from ..cards import Card
from ..settings import Setting
from .run import required_options
from .setting_values import option_name

EXAMPLE_TEXT_BY_KIND = {
    "layer": "relu2", "layers": "relu1,relu2", "objective": "logit(3)", "target": "3", "labels": "3",
    "data": "digits:train", "inputs": "IMAGE.png", "checkpoints": "EPOCH1.pt,EPOCH2.pt,EPOCH3.pt",
    "concepts": "NAME=FOLDER",
    "int": "9", "ints": "9", "float": "0.25", "floats": "0.1", "tensor": "0", "str": "NAME", "bool": "yes",
}  # fmt: skip
NEEDS_OF_THE_DIGITS_MODEL = {"pixels", "images", "relu", "linear end"}
DIGITS_WORDS, OWN_WORDS = ("zoo:digits-cnn", "digits:test"), ("MODEL", "DATA")
OWN_WORDS_NOTE = "words in capitals are yours"


def example_line(card: Card) -> str:
    """A line that runs the method, or why there is none."""
    if objects := [s.name for s in required_options(card) if _example_text(card, s) is None]:
        return (
            f"not by unboxed run: {' and '.join(objects)} {'is' if len(objects) == 1 else 'are'} made in Python, "
            f"for unboxed.{card.family}.{card.key}"
        )
    line = shlex.join(example_words(card)).replace("'", '"')
    return f"{line}  # {OWN_WORDS_NOTE}" if any(word in line for word in ("MODEL", ".pt", "NAME", "IMAGE")) else line


def example_words(card: Card) -> list[str]:
    """The words of that line; its required options have an example of their kind."""
    model, data = DIGITS_WORDS if set(card.needs) <= NEEDS_OF_THE_DIGITS_MODEL else OWN_WORDS
    options = [word for s in required_options(card) for word in (option_name(s.name), _example_text(card, s) or "")]
    return ["unboxed", "run", card.key, "--model", model, "--data", data, *options]


def _example_text(card: Card, setting: Setting) -> str | None:
    """A value of the setting as text; None where no words make one."""
    if setting.choices:
        return str(setting.choices[0])
    if setting.kind == "object" and get_origin(get_type_hints(card.method)[setting.name]) is Sequence:
        return "[[0, 1], [2, 3]]"  # lists of indices
    return EXAMPLE_TEXT_BY_KIND.get(setting.kind)
