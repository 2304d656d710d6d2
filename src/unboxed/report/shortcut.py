"""The planted shortcut as files: the table's numbers and two contact sheets, put into a folder whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Column, Table
from rich.text import Text
from tqdm import tqdm

from ..atomic_write import encoded
from ..checks.planting import Mark
from ..checks.shortcut import Shortcut, shortcut
from ..checks.trial import Finding
from ..data.uci import INPUTS
from ..errors import InputError
from ..plots import shortcut as draw
from ..plots.files import png
from ..training import versions
from ..training.shortcut import Pair, pair
from ..validation import check_seed
from .folder import Folder

SHEET, DRAWN, FACTS = "shortcut.png", "shortcut-drawn.png", "shortcut.json"
DIGITS = tuple("0123456789")
STYLES = {"shows it": "green", "doubtful": "yellow", "does not": "red", "refused": "dim"}


def mark_of(classes: str) -> Mark:
    """A mark on the digits of these classes: "3", "3,8" or "all". Raises InputError."""
    names = DIGITS if classes == "all" else tuple(classes.split(","))
    if unknown := [name for name in names if name.strip() not in DIGITS]:
        raise InputError(f"--marked is digits such as 3 or 3,8, or all; got {unknown[0]!r}")
    return Mark(INPUTS.shape, tuple(map(int, names)))


def planted_shortcut(
    out: str | os.PathLike[str], mark: Mark, *, seed: int = 0, quiet: bool = False, command: str = "", **training: Any
) -> tuple[Shortcut, Path]:
    """Train both models, judge every method, and write what was found to the folder `out`.

    `training` are the arguments of `training.shortcut.pair`. On Ctrl-C what was found is written, `interrupted`; before
    there is anything, nothing is. Raises InputError where the model did not learn the shortcut; WriteError.
    """
    seed = check_seed(seed)
    with Folder(out, page=SHEET, facts=FACTS) as folder:
        trained = pair(mark, seed=seed, quiet=quiet, **training)
        with tqdm(desc="judging", unit="method", disable=quiet, leave=False) as bar:
            found = shortcut(
                trained.model, trained.control, trained.x, trained.y, mark, seed=seed, watch=_watching(bar)
            )
        facts = {"command": command, "seed": seed, "training": _training(trained, training), **found.figures()}
        folder.put(SHEET, png(draw.maps(found)))
        folder.put(DRAWN, png(draw.drawn(found)))
        folder.put(FACTS, encoded(json.dumps({**facts, "versions": versions()}, indent=2) + "\n"))
        return found, folder.publish()


def _watching(bar: tqdm[Any]) -> Callable[[Finding], object]:
    def watch(finding: Finding) -> None:
        bar.set_postfix_str(f"{finding.method}: {finding.verdict}")
        bar.update()

    return watch


def _training(trained: Pair, settings: dict[str, Any]) -> dict[str, Any]:
    counts = {"images": trained.of, "marked": trained.marked, "strays": trained.strays}
    return counts | {k: v for k, v in settings.items() if v is None or isinstance(v, (int, float, str))}


def table(found: Shortcut) -> Table:
    """What a terminal shows."""
    names = Column("method", no_wrap=True), Column("verdict", no_wrap=True)
    rows = Table(*names, "what", "model", "control", title=_title(found), title_justify="left")
    family = ""
    for f in found.findings:
        if family and f.family != family:
            rows.add_section()
        family = f.family
        shares = [f"{v:.0%}" if v is not None else "" for v in (f.found, f.control)]
        what = f.said if f.verdict == "refused" else f.what
        rows.add_row(f.method, Text(f.verdict, STYLES[f.verdict]), Text(what), *shares)
    return rows


def _title(found: Shortcut) -> str:
    a, b = found.answers, found.control
    names = found.mark.classes
    classes = f"class {names[0]}" if len(names) == 1 else f"classes {', '.join(map(str, names))}"
    return (
        f"A model that goes by a mark (of {classes}): {a.clean:.1%} of clean held-out images right, but "
        f"{a.fooled:.1%} of falsely marked ones answered as the mark says.\n"
        f"Its control, which learned without marks: {b.clean:.1%} and {b.fooled:.1%}."
    )
