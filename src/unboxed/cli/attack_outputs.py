"""`unboxed attack` on models of numbers, several labels or label maps: their metrics under attack, as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..atomic_write import encode_utf8, write_bytes
from ..box import Box
from ..engine.optimize.constraints import format_eps
from ..parameters import Norm
from ..plots.figures import figures
from ..plots.files import save
from ..report.input_nouns import input_nouns_for
from ..report.words import count_noun
from ..robustness.evaluate import AttackFn
from ..robustness.evaluate_outputs import ALL_ATTACKS, OutputRobustness, evaluate_outputs
from .parsing import checkpoint_text


def run_output_attack(
    box: Box, data: Any, skipped: Sequence[Any], out: Path, results_file: str, attacks: Mapping[str, AttackFn] | None,
    *, eps: Sequence[float], norm: Norm, seed: int, quiet: bool, as_json: bool, checkpoint: Path,
) -> OutputRobustness:  # fmt: skip
    """Attack a model of such outputs: print a table, write curves and numbers to `out`.

    Raises as `evaluate_outputs`.
    """
    result = evaluate_outputs(
        box, data, attacks, eps=eps, norm=norm, seed=seed, quiet=quiet or as_json,
        checkpoint=checkpoint,
    )  # fmt: skip
    numbers = json.dumps(result.to_dict() | {"skipped": list(skipped)}, indent=1, ensure_ascii=False)
    write_bytes(out / results_file, encode_utf8(numbers))
    paths = [save(image, out / f"{name.replace(' ', '-')}.png") for name, image in figures(result, box).items()]
    if as_json:
        print(numbers)
    else:
        _print_output_robustness(result, eps_unit_text(box, result.eps[-1]), [*paths, out / results_file], checkpoint)
    return result


def eps_unit_text(box: Box, eps: float) -> str:
    """What an eps is an amount of."""
    return f"eps {format_eps(eps)} is {format_eps(eps)} {input_nouns_for(box.inputs).unit}"


def _print_output_robustness(result: OutputRobustness, eps_unit: str, paths: Sequence[Path], checkpoint: Path) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    columns = [Column(name, justify="right") for name in ("no attack", *(f"eps {format_eps(e)}" for e in result.eps))]
    table = Table(f"under attack ({result.norm})", *columns, box=None, pad_edge=False)
    names = [*result.attacks, ALL_ATTACKS] if len(result.attacks) > 1 else list(result.attacks)
    for metric, clean in result.clean.items():
        for name in names:
            table.add_row(f"{metric}, {name}", *(f"{v.mean:.3g}" for v in (clean, *result.attacked[name][metric])))
    console = Console()
    console.print(table)
    console.print(eps_unit, highlight=False)
    n, largest = count_noun(result.example_errors.shape[2], "example"), format_eps(result.eps[-1])
    for metric in result.clean:
        interval = result.metric(metric)
        text = f"{metric} within {largest}: {interval.mean:.3g}, 95% interval over {n}"
        console.print(f"{text} {interval.low:.3g} to {interval.high:.3g}", highlight=False)
    if result.interrupted:
        console.print("interrupted: attacks that did not run count as if they had found nothing", style="yellow")
    for finding in result.masking_findings:
        console.print(f"gradient masking: {finding}", style="yellow", highlight=False)
    for path in paths:
        console.print(f"wrote {path}", highlight=False)
    console.print(checkpoint_text(checkpoint), highlight=False)
