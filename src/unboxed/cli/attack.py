"""What fools it: a model's robustness as a table, pictures of what fools it, and the numbers."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import adversarial
from ..adversarial.changes import Change, changes
from ..adversarial.deepfool import deepfool
from ..adversarial.fab import fab
from ..atomic_write import encoded, write_bytes
from ..box import Box
from ..checkpointing import digest
from ..engine.optimize.constraints import eps_text
from ..engine.read.examples import labeled_rows
from ..errors import DataError, InputError
from ..inputs.pixels import Pixels
from ..plots.attacked import NORMS, attacked
from ..plots.files import save
from ..plots.pngs import pixels
from ..report.words import many
from ..robustness.evaluate import ATTACKS, Attack, Robustness, evaluate, taken
from ..robustness.norms import common_norm, fitting
from ..validation import whole

PICTURE, NUMBERS, IMAGES = "attacked.png", "attack.json", "images"
SHOWN = 6  # examples in the picture
WITHIN = ("auto_attack", "pgd", "apgd", "fgsm", "bim", "mi_fgsm", "square", "fab")
MINIMAL = ("deepfool", "ddn", "fmn", "carlini_wagner", "lbfgs", "hop_skip_jump", "boundary")


def chosen_attacks(box: Box, names: Sequence[str], norm: str | None, bits: int | None) -> tuple[dict[str, Attack], str]:
    """Attacks by name (none: the default ones), and their norm. Raises InputError with the nearest names."""
    attacks = {name: _named(name) for name in names}
    norm = norm or common_norm(attacks)
    attacks = attacks or fitting(ATTACKS, box, norm)
    return {name: partial(a, bits=bits) for name, a in attacks.items()} if bits is not None else attacks, norm


def _named(name: str) -> Attack:
    known = {k.replace("_", ""): k for k in (*WITHIN, *MINIMAL)}
    plain = name.lower().replace("_", "").replace("-", "")
    if plain not in known:
        near = difflib.get_close_matches(plain, known, n=3)
        hint = (
            f"did you mean {' or '.join(known[k] for k in near)}?" if near else f"there are {', '.join(known.values())}"
        )
        raise InputError(f"there is no attack {name!r}; {hint}")
    found: Attack = getattr(adversarial, known[plain])
    return found


def command(
    box: Box,
    data: Any,
    out: str | os.PathLike[str],
    *,
    attacks: Sequence[str] = (),
    eps: Sequence[float],
    norm: str | None = None,
    most: int | None = None,
    bits: int | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Robustness:
    """Attack a model on labeled examples: print a table, write pictures and numbers to `out`.

    `norm` is by default one that all attacks take: linf, or else l2 or l1. Stopped and called again with the same
    settings, it goes on where it was. Raises InputError and DataError.
    """
    if most is not None:
        whole("--n", most, least=1)
    out, (chosen, norm) = Path(out), chosen_attacks(box, attacks, norm, bits)
    x, y, rows = labeled_rows(box, data, most)
    if not len(x):
        raise DataError("the data are empty: there is nothing to attack")
    state = out / _state(attacks, eps, norm, most, bits, seed, digest(x, y))
    found = evaluate(
        box, (box.shaped(x), y), chosen, eps=eps, norm=norm, seed=seed, checkpoint=state, quiet=quiet,
        minimal=_minimal(norm),
    )  # fmt: skip
    numbers = found.plain() | {"skipped": _skipped(data)}
    write_bytes(out / NUMBERS, encoded(json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False)))
    picture = None if found.interrupted else _pictures(box, x, y, rows, found, chosen, out, bits, seed)
    _print(found, picture, out)
    return found


def _skipped(data: Any) -> list[dict[str, str]]:
    """The files of a folder of images that were left out, and why."""
    return [{"file": str(path), "why": why} for path, why in getattr(data, "skipped", ())]


def _minimal(norm: str) -> Attack:
    """What looks for the least distance: DeepFool, and FAB in the norm that DeepFool does not have."""
    return fab if norm.lower() == "l1" else deepfool


def _state(*settings: object) -> str:
    """The file of a run that may go on: one of other settings, images or labels has another name, and starts over."""
    return f"attack-{hashlib.sha256(encoded(repr(settings))).hexdigest()[:8]}.pt"


def _pictures(
    box: Box,
    x: Tensor,
    y: Tensor,
    places: Tensor,
    found: Robustness,
    attacks: dict[str, Attack],
    out: Path,
    bits: int | None,
    seed: int,
) -> Path | None:
    """The first examples that the strongest attack fools, at the largest eps; with bits, all of them as files too."""
    if not isinstance(box.inputs, Pixels):
        return None
    name = min(attacks, key=lambda a: found.robust(attack=a).count)
    fooled = found.right & ~found.stood[list(attacks).index(name), -1]
    rows = fooled.nonzero()[: None if bits is not None else SHOWN, 0]
    if not len(rows):
        return None
    attack, how = attacks[name], {"norm": found.norm, "seed": seed}
    made = attack(box, x[rows], y[rows], eps=found.eps[-1], **taken(attack, how))
    told = [replace(c, row=int(places[rows[c.row]])) for c in changes(box, x[rows], made) if c.fooled]
    if bits is not None:
        _files(told, out / IMAGES, box.classes)
    size = f"{NORMS[found.norm]} at most {eps_text(found.eps[-1])}"
    title = f"What {name} makes of these, {size}, and what the model then says"
    return save(attacked(told[:SHOWN], box.classes, norm=found.norm, title=title), out / PICTURE) if told else None


def _files(told: Sequence[Change], folder: Path, classes: Sequence[str]) -> None:
    """Each adversarial image as a PNG, named by its row in the data, what it is and what the model says of it."""
    for c in told:
        name = f"{c.row:05d}-{_word(classes[c.before])}-taken-for-{_word(classes[c.after])}.png"
        save(pixels(c.image[None])[0], folder / name)


def _word(name: str) -> str:
    return "".join(k if k.isalnum() else "-" for k in name)[:40]


def _print(found: Robustness, picture: Path | None, out: Path) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    console = Console()
    n = many(len(found.right), "example")
    console.print(f"{found.clean} of {n} right without an attack", highlight=False)
    right = [Column(f"eps {eps_text(e)}", justify="right") for e in found.eps]
    table = Table(
        f"still right under ({found.norm})", *right, Column("queries", justify="right"), box=None, pad_edge=False
    )
    for name, queries in zip(found.attacks, found.queries.tolist(), strict=True):
        table.add_row(name, *(str(found.robust(e, name)) for e in found.eps), f"{queries:,.0f}")
    if len(found.attacks) > 1:
        table.add_row("all together", *(str(found.robust(e)) for e in found.eps), "")
    console.print(table)
    console.print(_least(found), highlight=False)
    if said := _weakest(found):
        console.print(said, highlight=False)
    for alarm in found.alarms:
        console.print(f"alarm: {alarm}", style="yellow", highlight=False)
    if picture is not None:
        console.print(f"pictures: {picture}", highlight=False)
    elif not found.interrupted:
        console.print("no pictures: nothing was fooled, or the inputs are no images", highlight=False)
    if (out / IMAGES).is_dir():
        console.print(f"the strongest attack's images at the largest eps, as files: {out / IMAGES}", highlight=False)
    console.print(f"numbers: {out / NUMBERS}", highlight=False)


def _least(found: Robustness) -> str:
    if not found.clean.count:
        return "no answer is right without an attack, so there is none to take: are the labels those of this model?"
    if found.median == float("inf"):
        return "for half of the right answers, no change that fools was found"
    minimal = "FAB" if found.norm == "l1" else "DeepFool"
    least = f"{NORMS[found.norm]} of {found.median:.3g}"
    return f"half of the right answers fall to a {least} (these attacks and {minimal})"


def _weakest(found: Robustness) -> str:
    """The classes that stand least at the largest eps, where some stand more than others."""
    classes = sorted(found.by_class().items(), key=lambda pair: pair[1][1].value)
    if len(classes) < 2 or classes[0][1][1].value == classes[-1][1][1].value:
        return ""
    told = "; ".join(f"class {name}: {robust.value:.0%}" for name, (_, robust) in classes[:3])
    return f"classes that stand least at eps {eps_text(found.eps[-1])}: {told}"
