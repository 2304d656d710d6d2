"""Why this prediction: the map of one input by every attribution method, and which of the maps to trust."""

from __future__ import annotations

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

from ..atomic_write import encode_utf8, write_bytes
from ..box import Box
from ..checks.fill_agreement import fill_agreement_sentence
from ..checks.methods import Method, compute_map, resolve_target
from ..checks.ranking import candidates, find_methods, n_forwards_per_input
from ..checks.verdict import GRADES, MAX_DRAWS_PER_TEST, NOT_APPLICABLE, Verdict
from ..checks.verdict_cache import VerdictCache, nan_to_none
from ..data.single import image as single_image
from ..errors import InputError, UnboxedError
from ..inputs.pixels import Pixels
from ..objectives import mean_over_positions
from ..plots.explanation_sheet import explanation_sheet
from ..plots.files import save
from ..report.words import format_named_prob
from ..validation import check_seed
from .parsing import parse_class

N_TOP_OUTPUTS_PRINTED = 3  # that are printed
EXPENSIVE_RUNS, EXPENSIVE_DRAWS = 100, 2  # model runs from which a method is compared with so few randomized models
FIGURE_FILE, RESULTS_FILE, VERDICTS_FILE = "explained.png", "explained.json", "verdicts.json"


@dataclass(frozen=True, eq=False)
class RankedExplanations:
    """The maps of one input and the verdicts on their methods, the most trustworthy first."""

    prediction: str  # the largest outputs, in words
    target_name: str  # the class, or output, that is explained
    verdicts: dict[str, Verdict]
    maps: dict[str, Tensor]  # (1, C or 1, H, W), of those that could be made
    interrupted: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)  # with other settings than a method's own

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        verdicts = {name: {**v.to_dict(), "settings": self.settings.get(name, "")} for name, v in self.verdicts.items()}
        return {
            "prediction": self.prediction,
            "of": self.target_name,
            "interrupted": self.interrupted,
            "methods": verdicts,
        }


def explain(
    box: Box,
    x: Tensor,
    methods: Mapping[str, Method] | None = None,
    target: int | None = None,
    *,
    seed: int = 0,
    verdict_cache: VerdictCache | None = None,
    quiet: bool = True,
) -> RankedExplanations:
    """Explain the prediction for one input x (1, ...) by each method, and rank the methods by their verdicts.

    `target` is a class, by default the predicted one. Verdicts are about this model and this input; with more inputs
    they are more certain (`checks.ranked`). Ctrl-C keeps the methods so far. Raises InputError.
    """
    x, seed = box.validate_inputs(x), check_seed(seed)
    if len(x) != 1:
        raise InputError(f"x must be one input (1, ...); got {len(x)} inputs")
    verdict_cache = verdict_cache or VerdictCache()
    score = resolve_target(box, x, target)
    verdicts: dict[str, Verdict] = {}
    maps: dict[str, Tensor] = {}
    interrupted = False
    selected = candidates(box) if methods is None else methods
    try:
        for name in tqdm(selected, disable=quiet, file=sys.stderr, leave=False, desc="Running each method"):
            with suppress(UnboxedError):  # its verdict says why
                maps[name] = compute_map(box, selected[name], x, score)
            max_draws = MAX_DRAWS_PER_TEST if n_forwards_per_input(selected[name]) < EXPENSIVE_RUNS else EXPENSIVE_DRAWS
            verdicts[name] = verdict_cache.verdict(
                box, x, selected[name], score, max_draws=max_draws, map_=maps.get(name), seed=seed
            )
    except KeyboardInterrupt:
        interrupted = True
    order = sorted(verdicts, key=lambda name: verdicts[name].rank)
    return RankedExplanations(
        _top_outputs_text(box, x), _target_name(box, int(score[0])), {n: verdicts[n] for n in order},
        {n: maps[n] for n in order if n in maps}, interrupted, {n: _partial_settings_text(selected[n]) for n in order},
    )  # fmt: skip


def _partial_settings_text(method: Method) -> str:
    """The settings of a `functools.partial`."""
    keywords = method.keywords if isinstance(method, partial) else {}
    return "".join(f", {name}={value}" for name, value in keywords.items())


def _target_name(box: Box, k: int) -> str:
    return f"output {box.classes[k]}" if box.outputs == "regression" else box.classes[k]


def _top_outputs_text(box: Box, x: Tensor) -> str:
    """The largest outputs in words."""
    logits = box(x)
    values = logits if box.outputs == "regression" else box.probs_from(logits)
    top = torch.topk(mean_over_positions(values)[0], min(N_TOP_OUTPUTS_PRINTED, values.shape[1]))
    format_value = (lambda v: f"{v:.3g}") if box.outputs == "regression" else format_named_prob
    pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    return ", ".join(f"{box.classes[k]} ({format_value(v)})" for v, k in pairs)


# -- as a command ----------------------------------------------------------------------------------------------------


def run_explain(
    box: Box,
    image: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    methods: Sequence[str] | None = None,
    target: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> RankedExplanations:
    """Explain the image in a file: print the ranking, write the maps as one image and the numbers as JSON to `out`.

    Verdicts are cached there. Raises DataError, InputError and WriteError.
    """
    x, out = read_image(box, image), Path(out)
    selected = find_methods(box, list(methods)) if methods else candidates(box)
    k = None if target is None else parse_class(target, box)
    verdicts_path = out / VERDICTS_FILE
    verdict_cache = VerdictCache(verdicts_path.read_bytes() if verdicts_path.is_file() else b"")
    explanation = explain(box, x, selected, k, seed=seed, verdict_cache=verdict_cache, quiet=quiet)
    write_bytes(verdicts_path, verdict_cache.to_json())
    write_bytes(
        out / RESULTS_FILE, encode_utf8(json.dumps(nan_to_none(explanation.to_dict()), indent=1, ensure_ascii=False))
    )
    names = {name: v.method for name, v in explanation.verdicts.items()}
    badges = {names[name]: v.badge for name, v in explanation.verdicts.items()}
    title = f"Why {explanation.target_name}? The model predicts {explanation.prediction}"
    figure = explanation_sheet(x[0], {names[n]: m[0] for n, m in explanation.maps.items()}, badges, title=title)
    _print_explanation(explanation, save(figure, out / FIGURE_FILE))
    return explanation


def read_image(box: Box, image: str | os.PathLike[str]) -> Tensor:
    """The image in a file, as the model takes it, (1, C, H, W). Raises DataError, InputError."""
    if not isinstance(box.inputs, Pixels):
        raise InputError(
            "explain reads an image; this model doesn't take images. In Python: unboxed.cli.explain.explain(box, x)"
        )
    return single_image(image, box)


COLOR_BY_GRADE = dict(zip(GRADES, ("green", "yellow", "red", "dim"), strict=True))
VERDICT_TABLE_LEGEND = (
    "randomization: rank correlation of the map with the map after the weights of the model's upper half are "
    "randomized; near 0 is good. relevance gain: how much sooner the score falls when what the map marks is removed "
    "first than when it is removed last; 0 is a random order. One example decides only what is clear: "
    "unboxed report judges methods on more."
)


def _print_explanation(explanation: RankedExplanations, figure_path: Path) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    console.print(
        f"The model predicts {explanation.prediction}. Why {explanation.target_name}? The most trustworthy map first:",
        highlight=False,
    )
    method, badge = Column("method", no_wrap=True), Column("", no_wrap=True)
    columns = ("why", "random-\nization", "relevance\ngain")
    table = Table(method, badge, *columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, v in explanation.verdicts.items():
        figures = [v.figures.get(name, math.nan) for name in ("randomization", "removal")]
        texts = ["" if math.isnan(value) else f"{value:.2f}" for value in figures]
        why = (v.reason if v.grade != NOT_APPLICABLE else v.sentence) + explanation.settings.get(name, "")
        table.add_row(escape(v.method), f"[{COLOR_BY_GRADE[v.grade]}]{v.badge}[/]", escape(why), *texts)
    console.print(table)
    if sentence := fill_agreement_sentence(explanation.verdicts):
        console.print(sentence, highlight=False)
    console.print(VERDICT_TABLE_LEGEND, style="dim", highlight=False)
    console.print(f"maps: {figure_path}", highlight=False)
