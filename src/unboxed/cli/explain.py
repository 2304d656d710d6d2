"""Why this answer: one input, every method's map of it, and which of them to believe."""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..atomic_write import encoded, write_bytes
from ..box import Box
from ..checks.methods import Method, drawn, fixed
from ..checks.ranking import candidates, named, runs
from ..checks.remembered import Remembered, finite
from ..checks.verdict import PAIRS, Verdict
from ..errors import DataError, InputError, UnboxedError
from ..inputs import images
from ..inputs.pixels import Pixels
from ..objectives import pooled
from ..plots.explained import explained
from ..plots.files import save
from ..report.words import p_of
from ..validation import check_seed

SAID = 3  # classes that are told
MANY, FEW = 100, 2  # a method that runs the model so often is compared with so many models drawn anew
PICTURE, NUMBERS, VERDICTS = "explained.png", "explained.json", "verdicts.json"


@dataclass(frozen=True, eq=False)
class Explained:
    """Of one input; methods stand from the most to the least believable."""

    answer: str  # what the model says of it
    of: str  # the class, or output, that is explained
    verdicts: dict[str, Verdict]
    maps: dict[str, Tensor]  # (1, C or 1, H, W), of those that could be made
    interrupted: bool = False
    asked: Mapping[str, str] = field(default_factory=dict)  # with other settings than a method's own

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        verdicts = {name: {**v.plain(), "settings": self.asked.get(name, "")} for name, v in self.verdicts.items()}
        return {"answer": self.answer, "of": self.of, "interrupted": self.interrupted, "methods": verdicts}


def explain(
    box: Box,
    x: Tensor,
    methods: Mapping[str, Method] | None = None,
    target: int | None = None,
    *,
    seed: int = 0,
    remembered: Remembered | None = None,
    quiet: bool = True,
) -> Explained:
    """Explain the model's answer to one input x (1, ...) by each method, and rank the methods by their verdicts.

    `target` is a class, by default the one predicted. Verdicts are of this model and this input: the more inputs, the
    surer (`checks.ranked`). Stopped by Ctrl-C it returns what there is. Raises InputError.
    """
    x, seed = box.accept(x), check_seed(seed)
    if len(x) != 1:
        raise InputError(f"one input is explained at a time; got {len(x)}")
    remembered = remembered or Remembered()
    score = fixed(box, x, target)
    verdicts: dict[str, Verdict] = {}
    maps: dict[str, Tensor] = {}
    interrupted = False
    chosen = candidates(box) if methods is None else methods
    try:
        for name in tqdm(chosen, disable=quiet, file=sys.stderr, leave=False, desc="Asking each method"):
            with suppress(UnboxedError):  # its verdict says why
                maps[name] = drawn(box, chosen[name], x, score)
            pairs = PAIRS if runs(chosen[name]) < MANY else FEW
            verdicts[name] = remembered.verdict(
                box, x, chosen[name], score, pairs=pairs, map_=maps.get(name), seed=seed
            )
    except KeyboardInterrupt:
        interrupted = True
    order = sorted(verdicts, key=lambda name: verdicts[name].rank)
    return Explained(
        _answer(box, x), _name(box, int(score[0])), {n: verdicts[n] for n in order},
        {n: maps[n] for n in order if n in maps}, interrupted, {n: _asked(chosen[n]) for n in order},
    )  # fmt: skip


def _asked(method: Method) -> str:
    """The settings given with a method."""
    given = method.keywords if isinstance(method, partial) else {}
    return "".join(f", {name}={value}" for name, value in given.items())


def _name(box: Box, k: int) -> str:
    return f"output {box.classes[k]}" if box.outputs == "regression" else box.classes[k]


def _answer(box: Box, x: Tensor) -> str:
    """The largest outputs in words."""
    logits = box(x)
    values = logits if box.outputs == "regression" else box.probs_of(logits)
    top = torch.topk(pooled(values)[0], min(SAID, values.shape[1]))
    said = (lambda v: f"{v:.3g}") if box.outputs == "regression" else p_of
    pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    return ", ".join(f"{box.classes[k]} ({said(v)})" for v, k in pairs)


# -- as a command ----------------------------------------------------------------------------------------------------


def command(
    box: Box,
    image: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    methods: Sequence[str] | None = None,
    target: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Explained:
    """Explain the image in a file: print the ranking, write the maps as one picture and the numbers as JSON to `out`.

    Verdicts are kept there, and not found twice. Raises DataError, InputError and WriteError.
    """
    x, out = read(box, image), Path(out)
    chosen = named(box, list(methods)) if methods else candidates(box)
    k = None if target is None else _class(box, target)
    kept = out / VERDICTS
    remembered = Remembered(kept.read_bytes() if kept.is_file() else b"")
    found = explain(box, x, chosen, k, seed=seed, remembered=remembered, quiet=quiet)
    write_bytes(kept, remembered.text())
    write_bytes(out / NUMBERS, encoded(json.dumps(finite(found.plain()), indent=1, ensure_ascii=False)))
    names = {name: v.method for name, v in found.verdicts.items()}
    words = {names[name]: v.badge for name, v in found.verdicts.items()}
    title = f"Why {found.of}? The model says {found.answer}"
    picture = explained(x[0], {names[n]: m[0] for n, m in found.maps.items()}, words, title=title)
    _print(found, save(picture, out / PICTURE))
    return found


def read(box: Box, image: str | os.PathLike[str]) -> Tensor:
    """The image in a file, as the model takes it, (1, C, H, W). Raises DataError, InputError."""
    if not isinstance(box.inputs, Pixels):
        raise InputError(
            "explain reads an image; this model doesn't take images. From Python: unboxed.cli.explain.explain(box, x)"
        )
    path = Path(image)
    if not path.exists():
        raise DataError(f"there is no file {path}")
    if (fault := images.fault(path)) is not None:
        raise DataError(f"{path} is {fault}" if path.is_file() else f"{path} is a folder: name one image")
    try:
        return images.read(path, images.wanted(box.inputs))[None]
    except Exception as error:  # decoders raise nearly anything
        raise DataError(f"{path}: {images.reason(error)}") from error


def _class(box: Box, target: str) -> int:
    """A class by its name or number. Raises InputError."""
    if target in box.classes:
        return box.classes.index(target)
    if target.isdecimal() and int(target) < len(box.classes):
        return int(target)
    near = difflib.get_close_matches(target, box.classes, n=3)
    known = f"did you mean {', '.join(near)}?" if near else f"there are {len(box.classes)}, {box.classes[0]} first"
    raise InputError(f"the model has no class {target!r}; {known}")


COLORS = {"pass": "green", "doubtful": "yellow", "fail": "red", "not made": "dim"}


LEGEND = (
    "random weights: rank correlation with the map once the weights of the model's upper half are random; near 0 is "
    "right. left / at random: how much of the answer is left, on average, while what the map marks is removed, and if "
    "as much is removed at random."
)


def _print(found: Explained, picture: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    console.print(f"The model says {found.answer}. Why {found.of}? The most believable first:", highlight=False)
    method, badge = Column("method", no_wrap=True), Column("", no_wrap=True)
    rest = ("why", "random weights", "left / at random")
    table = Table(method, badge, *rest, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, v in found.verdicts.items():
        told = [v.figures.get(k, math.nan) for k in ("signed", "kept", "kept_random")]
        left = "" if math.isnan(told[1]) else f"{told[1]:.0%} / {told[2]:.0%}"
        alike = "" if math.isnan(told[0]) else f"{told[0]:.2f}"
        why = (v.reason if v.grade != "not made" else v.sentence) + found.asked.get(name, "")
        table.add_row(name, f"[{COLORS[v.grade]}]{v.badge}[/]", escape(why), alike, left)
    console.print(table)
    console.print(LEGEND, style="dim", highlight=False)
    console.print(f"maps: {picture}", highlight=False)
