"""`unboxed attack`: clean and robust accuracy as a table, a figure of adversarial images, and the numbers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from ..adversarial.changes import PredictionChange, prediction_changes
from ..atomic_write import encode_utf8, write_bytes
from ..box import Box
from ..cards import Card, cards, find_card
from ..checkpointing import tensor_digest
from ..engine.optimize.constraints import format_eps, unbounded_ball
from ..engine.read.class_labels import class_order_notes, has_class_labels, label_assumption
from ..engine.read.examples import indexed_labeled_examples
from ..engine.read.output_values import indexed_examples_with_output_values
from ..errors import DataError
from ..inputs.features import Features
from ..inputs.pixels import Pixels
from ..parameters import Norm
from ..plots.attack_sheet import DISTANCE_NAME_BY_NORM, attack_sheet
from ..plots.files import save
from ..plots.png_files import to_png_levels
from ..plots.results.adversarial import column_change_figures
from ..report.input_nouns import input_nouns_for
from ..report.words import count_noun
from ..robustness.attack_compatibility import compatible_attacks, first_common_norm
from ..robustness.evaluate import AttackFn, default_attacks, evaluate, supported_kwargs
from ..robustness.evaluate_outputs import OutputRobustness
from ..robustness.result import Robustness
from ..validation import check_int
from .attack_outputs import eps_unit_text, run_output_attack
from .parsing import checkpoint_text, skipped_files

FIGURE_FILE, RESULTS_FILE, IMAGES_DIR = "attacked.png", "attack.json", "images"
MAX_FOOLED_EXAMPLES_IN_FIGURE = 6


def attack_cards() -> tuple[Card, ...]:
    """The attacks that an evaluation can run: those within eps, then those that search for the smallest change."""
    attacks = [card for card in cards() if card.returns == "adversarial"]
    return tuple(sorted(attacks, key=lambda card: card.minimal))


def select_attacks(
    box: Box, names: Sequence[str], norm: str | None, bits: int | None
) -> tuple[dict[str, AttackFn], Norm]:
    """Attacks by name (none: the default ones), and their norm. Raises InputError with the nearest names."""
    attacks = {name: find_card(name, attack_cards()).method for name in names}
    ball = unbounded_ball(norm or first_common_norm(attacks))
    norm_name = cast(Norm, type(ball).__name__.lower())
    attacks = attacks or compatible_attacks(default_attacks(), box, norm_name)
    return {name: partial(a, bits=bits) for name, a in attacks.items()} if bits is not None else attacks, norm_name


def run_attack(
    box: Box,
    data: Any,
    out: str | os.PathLike[str],
    *,
    attacks: Sequence[str] = (),
    eps: Sequence[float],
    norm: str | None = None,
    max_examples: int | None = None,
    bits: int | None = None,
    seed: int = 0,
    quiet: bool = False,
    as_json: bool = False,
) -> Robustness | OutputRobustness:
    """Attack a model on labeled examples: print a table, write figures and numbers to `out`.

    `norm` is by default one that all attacks take: linf, or else l2 or l1. Stopped and called again with the same
    settings, it resumes. Raises InputError and DataError.
    """
    if max_examples is not None:
        check_int("--n", max_examples, minimum=1)
    out, (selected, norm_name) = Path(out), select_attacks(box, attacks, norm, bits)
    settings = attacks, eps, norm_name, max_examples, bits, seed
    if not has_class_labels(box):
        x, y, _ = indexed_examples_with_output_values(box, data, max_examples)
        return run_output_attack(
            box, (box.restore_structure(x), y), skipped_files(data), out, RESULTS_FILE, selected if attacks else None,
            eps=eps, norm=norm_name, seed=seed, quiet=quiet, as_json=as_json,
            checkpoint=out / _checkpoint_file_name(*settings, tensor_digest(x, y)),
        )  # fmt: skip
    x, y, rows = indexed_labeled_examples(box, data, max_examples)
    if not len(x):
        raise DataError("the data are empty: there is nothing to attack")
    checkpoint_path = out / _checkpoint_file_name(*settings, tensor_digest(x, y))
    result = evaluate(
        box,
        (box.restore_structure(x), y),
        selected,
        eps=eps,
        norm=norm_name,
        seed=seed,
        checkpoint=checkpoint_path,
        quiet=quiet,
        minimal_attack=_minimal_attack(norm_name, bits),
    )
    class_order = class_order_notes(label_assumption(data), result.clean_accuracy, len(result.classes))
    results_json = result.to_dict() | {"skipped": skipped_files(data), "class_order": class_order}
    write_bytes(
        out / RESULTS_FILE, encode_utf8(json.dumps(results_json, indent=1, ensure_ascii=False, allow_nan=False))
    )
    figure_path = (
        None if result.interrupted else _save_fooled_examples(box, x, y, rows, result, selected, out, bits, seed)
    )
    no_figure = "no example was fooled" if isinstance(box.inputs, (Pixels, Features)) else "the inputs are not images"
    if as_json:
        print(json.dumps(results_json, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        figure = no_figure if figure_path is None else figure_path
        _print_robustness_result(result, class_order, eps_unit_text(box, result.eps[-1]), figure, out, checkpoint_path)
    return result


def _first_minimal_attack_card(norm: str) -> Card:
    """The first minimal attack that takes the norm."""
    return next(card for card in attack_cards() if card.minimal and norm in card.norms)


def _minimal_attack(norm: str, bits: int | None) -> AttackFn:
    """The attack that searches for the smallest change, among images of so many bits."""
    attack = _first_minimal_attack_card(norm).method
    return attack if bits is None else partial(attack, bits=bits)


def _checkpoint_file_name(*settings: object) -> str:
    """The checkpoint of a run: other settings, images or labels have another name, so such a run starts over."""
    return f"attack-{hashlib.sha256(encode_utf8(repr(settings))).hexdigest()[:8]}.pt"


def _save_fooled_examples(
    box: Box,
    x: Tensor,
    y: Tensor,
    row_in_data: Tensor,
    result: Robustness,
    attacks: dict[str, AttackFn],
    out: Path,
    bits: int | None,
    seed: int,
) -> Path | None:
    """The first examples that the strongest attack fools, at the largest eps; with bits, all of them as files too."""
    if not isinstance(box.inputs, (Pixels, Features)):
        return None
    name, attack, fooled = _strongest_attack_and_fooled_examples(result, attacks, bits)
    rows = fooled.nonzero()[: None if bits is not None else MAX_FOOLED_EXAMPLES_IN_FIGURE, 0]
    if not len(rows):
        return None
    settings = {"norm": result.norm, "seed": seed}
    adversarial_result = attack(box, x[rows], y[rows], eps=result.eps[-1], **supported_kwargs(attack, settings))
    eps_text = f"{DISTANCE_NAME_BY_NORM[result.norm]} at most {format_eps(result.eps[-1])}"
    if isinstance(box.inputs, Features):
        title = f"Adversarial rows by {name}, {eps_text} {input_nouns_for(box.inputs).unit}"
        numbers = row_in_data[rows].tolist()
        drawn = column_change_figures(adversarial_result, box, title=title, dataset_rows=numbers)
        return save(drawn["change"], out / FIGURE_FILE)
    fooled_changes = [
        replace(c, row=int(row_in_data[rows[c.row]]))
        for c in prediction_changes(box, x[rows], adversarial_result)
        if c.is_adversarial
    ]
    if bits is not None:
        _save_adversarial_images(fooled_changes, out / IMAGES_DIR, box.classes)
    title = f"Adversarial images by {name}, {eps_text}"
    return (
        save(
            attack_sheet(fooled_changes[:MAX_FOOLED_EXAMPLES_IN_FIGURE], box.classes, norm=result.norm, title=title),
            out / FIGURE_FILE,
        )
        if fooled_changes
        else None
    )


def _strongest_attack_and_fooled_examples(
    result: Robustness, attacks: dict[str, AttackFn], bits: int | None
) -> tuple[str, AttackFn, Tensor]:
    """The attack that fools most at the largest eps, its name, and the examples (N,) that it fools.

    Where attacks within eps fool none, it is the search for the smallest change.
    """
    name = min(attacks, key=lambda a: result.robust_accuracy(attack=a).count)
    fooled = result.is_correct & ~result.robust_examples(attack=name)
    if fooled.any():
        return name, attacks[name], fooled
    return result.minimal_attack, _minimal_attack(result.norm, bits), result.is_correct & ~result.robust_examples()


def _save_adversarial_images(fooled_changes: Sequence[PredictionChange], folder: Path, classes: Sequence[str]) -> None:
    """Each adversarial image as a PNG, named by its row in the data and the predictions before and after."""
    for c in fooled_changes:
        before, after = (_class_name_for_file(classes[k]) for k in (c.class_before, c.class_after))
        name = f"{c.row:05d}-{before}-to-{after}.png"
        save(to_png_levels(c.image[None])[0], folder / name)


def _class_name_for_file(name: str) -> str:
    return "".join(k if k.isalnum() else "-" for k in name)[:40]


def _print_robustness_result(
    result: Robustness, class_order: Sequence[str], eps_unit: str, figure: Path | str, out: Path, checkpoint_path: Path
) -> None:
    """Print the numbers, what is to be read beside them and the files; `figure` is its file, or why there is none."""
    from rich.console import Console

    console = Console()
    lines = [eps_unit, _median_distance_text(result), _least_robust_classes_text(result)]
    if not result.interrupted:
        lines.append(f"no figure: {figure}" if isinstance(figure, str) else f"figure: {figure}")
    if (out / IMAGES_DIR).is_dir():
        lines.append(f"adversarial images of the strongest attack at the largest eps: {out / IMAGES_DIR}")
    n = count_noun(len(result.is_correct), "example")
    console.print(f"clean accuracy {result.clean_accuracy} of {n}, 95% intervals in brackets", highlight=False)
    for note in class_order:
        console.print(note, style="yellow", highlight=False, markup=False)
    console.print(_accuracy_table(result))
    for finding in result.masking_findings:
        console.print(f"gradient masking: {finding}", style="yellow", highlight=False)
    lines.append(f"numbers: {out / RESULTS_FILE}")
    if checkpoint_path.is_file():
        lines.append(checkpoint_text(checkpoint_path))
    for line in filter(None, lines):
        console.print(line, highlight=False)


def _accuracy_table(result: Robustness) -> Any:
    """Robust accuracy, one row per attack and one column per eps."""
    from rich.table import Column, Table

    columns = [Column(f"eps {format_eps(e)}", justify="right") for e in result.eps]
    title = f"robust accuracy under ({result.norm})"
    table = Table(title, *columns, Column("queries", justify="right"), box=None, pad_edge=False)
    for name, queries in zip(result.attacks, result.mean_queries.tolist(), strict=True):
        table.add_row(name, *(str(result.robust_accuracy(e, name)) for e in result.eps), f"{queries:,.0f}")
    if len(result.all_attacks) > 1:
        table.add_row("all, with " + result.minimal_attack, *(str(result.robust_accuracy(e)) for e in result.eps), "")
    return table


def _median_distance_text(result: Robustness) -> str:
    if not result.clean_accuracy.count:
        return "clean accuracy is 0, so there is nothing to attack: are the labels those of this model?"
    if result.median_distance == float("inf"):
        return "for half of the correctly classified examples, no adversarial image was found"
    return f"median adversarial {result.norm} distance {result.median_distance:.3g} ({', '.join(result.all_attacks)})"


def _least_robust_classes_text(result: Robustness) -> str:
    """The least robust classes at the largest eps, where classes differ."""
    classes = sorted(result.accuracy_by_class().items(), key=lambda pair: pair[1][1].value)
    if len(classes) < 2 or classes[0][1][1].value == classes[-1][1][1].value:
        return ""
    text = "; ".join(f"class {name}: {robust.value:.0%}" for name, (_, robust) in classes[:3])
    return f"least robust classes at eps {format_eps(result.eps[-1])}: {text}"
