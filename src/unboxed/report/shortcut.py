"""The planted shortcut as files: the numbers of the table and two contact sheets, written together."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from rich.table import Column, Table
from rich.text import Text
from tqdm import tqdm

from ..atomic_write import encode_utf8
from ..checks.planting import Trigger
from ..checks.shortcut import shortcut
from ..checks.shortcut_report import ShortcutReport
from ..checks.shortcut_trial import ShortcutFinding, ShortcutGrade
from ..data.uci import DIGITS_INPUTS
from ..errors import InputError
from ..plots import figures
from ..plots.files import png_bytes
from ..training import versions
from ..training.shortcut import ShortcutPair, train_shortcut_pair
from ..validation import valid_seed
from .folder import ReportFolder

FILE_NAME_BY_FIGURE = {"maps": "shortcut.png", "images": "shortcut-drawn.png"}
SHORTCUT_JSON_FILE = "shortcut.json"
DIGIT_CLASSES = tuple("0123456789")
TERMINAL_STYLE_BY_GRADE = dict(zip(get_args(ShortcutGrade), ("green", "yellow", "red", "dim"), strict=True))
SHORTCUT_GRADE_NOT_APPLICABLE = get_args(ShortcutGrade)[-1]


def parse_trigger(classes: str) -> Trigger:
    """A trigger on the digits of these classes: "3", "3,8" or "all". Raises InputError."""
    names = DIGIT_CLASSES if classes == "all" else tuple(classes.split(","))
    if unknown := [name for name in names if name.strip() not in DIGIT_CLASSES]:
        raise InputError(f"--marked must be digits such as 3 or 3,8, or all; got {unknown[0]!r}")
    return Trigger(DIGITS_INPUTS.shape, tuple(map(int, names)))


def run_shortcut_check(
    out: str | os.PathLike[str],
    trigger: Trigger,
    *,
    seed: int = 0,
    quiet: bool = False,
    command: str = "",
    **training: Any,
) -> tuple[ShortcutReport, Path]:
    """Train both models, judge every method, and write the results to the folder `out`.

    `training` are the arguments of `training.shortcut.train_shortcut_pair`. On Ctrl-C the results so far are written,
    marked as interrupted. Raises InputError where the model did not learn the shortcut; WriteError.
    """
    seed = valid_seed(seed)
    with ReportFolder(out, page=FILE_NAME_BY_FIGURE["maps"], facts=SHORTCUT_JSON_FILE) as folder:
        model_pair = train_shortcut_pair(trigger, seed=seed, quiet=quiet, **training)
        with tqdm(desc="checking methods", unit="method", disable=quiet, leave=False) as bar:
            result = shortcut(
                model_pair.model,
                model_pair.control,
                model_pair.x,
                model_pair.y,
                trigger,
                seed=seed,
                callback=_make_finding_progress_callback(bar),
            )
        facts = {
            "command": command,
            "seed": seed,
            "training": _training_facts(model_pair, training),
            **result.to_dict(),
        }
        for name, image in figures(result).items():
            folder.stage(FILE_NAME_BY_FIGURE[name], png_bytes(image))
        folder.stage(SHORTCUT_JSON_FILE, encode_utf8(json.dumps({**facts, "versions": versions()}, indent=2) + "\n"))
        return result, folder.publish()


def _make_finding_progress_callback(bar: tqdm[Any]) -> Callable[[ShortcutFinding], object]:
    def advance_bar_with_finding(finding: ShortcutFinding) -> None:
        bar.set_postfix_str(f"{finding.method}: {finding.grade}")
        bar.update()

    return advance_bar_with_finding


def _training_facts(model_pair: ShortcutPair, settings: dict[str, Any]) -> dict[str, Any]:
    counts = {"images": model_pair.n_training, "marked": model_pair.n_triggered, "poisoned": model_pair.n_poisoned}
    return counts | {k: v for k, v in settings.items() if v is None or isinstance(v, (int, float, str))}


def shortcut_results_table(result: ShortcutReport) -> Table:
    """The table that a terminal prints."""
    names = Column("method", no_wrap=True), Column("verdict", no_wrap=True)
    rows = Table(*names, "what", "model", "control", title=_results_table_title(result), title_justify="left")
    family = ""
    for f in result.findings:
        if family and f.family != family:
            rows.add_section()
        family = f.family
        percentages = [f"{v:.0%}" if v is not None else "" for v in (f.score, f.control_score)]
        what = f.sentence if f.grade == SHORTCUT_GRADE_NOT_APPLICABLE else f.quantity
        rows.add_row(f.method, Text(f.grade, TERMINAL_STYLE_BY_GRADE[f.grade]), Text(what), *percentages)
    return rows


def _results_table_title(result: ShortcutReport) -> str:
    a, b = result.model_accuracy, result.control_accuracy
    names = result.trigger.classes
    classes = f"class {names[0]}" if len(names) == 1 else f"classes {', '.join(map(str, names))}"
    return (
        f"A model that relies on a trigger (of {classes}): clean accuracy {a.clean_accuracy:.1%} on test images, but "
        f"{a.fooled_rate:.1%} of those with a mismatched trigger are classified as the trigger's class.\n"
        f"Its control, trained without triggers: {b.clean_accuracy:.1%} and {b.fooled_rate:.1%}."
    )
