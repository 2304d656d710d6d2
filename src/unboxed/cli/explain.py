"""Why this prediction: the map of an input by every attribution method, and which of the maps to trust."""

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
from ..checks.control_boxes import sharing_control_boxes
from ..checks.fill_agreement import fill_dependence_sentence
from ..checks.methods import AttributionMethodFn, compute_map, resolve_target
from ..checks.ranking import candidates, estimated_forwards_per_input, find_attribution_methods
from ..checks.verdict import GRADES, MAX_DRAWS_PER_TEST, NOT_APPLICABLE, Verdict
from ..checks.verdict_cache import VerdictCache
from ..engine.results import nonfinite_to_none
from ..errors import InputError, UnboxedError
from ..loading.input_files import read_inputs
from ..objectives import mean_over_positions
from ..plots.explanation_sheet import explanation_sheet, row_explanation_sheet
from ..plots.files import save
from ..plots.results.common import column_names, images_or_none
from ..report.words import format_named_prob
from ..validation import check_int, check_seed
from .parsing import parse_class

N_PRINTED_TOP_OUTPUTS = 3  # that are printed
DEFAULT_MAX_EXAMPLES = 4  # of a file or folder of several
EXPENSIVE_METHOD_MIN_FORWARDS, EXPENSIVE_METHOD_MAX_DRAWS = (
    100,
    2,
)  # model runs from which a method is compared with so few randomized models
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
    methods: Mapping[str, AttributionMethodFn] | None = None,
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
        with sharing_control_boxes(box):
            for name in tqdm(selected, disable=quiet, file=sys.stderr, leave=False, desc="Running each method"):
                with suppress(UnboxedError):  # its verdict says why
                    maps[name] = compute_map(box, selected[name], x, score)
                is_cheap = estimated_forwards_per_input(selected[name]) < EXPENSIVE_METHOD_MIN_FORWARDS
                max_draws = MAX_DRAWS_PER_TEST if is_cheap else EXPENSIVE_METHOD_MAX_DRAWS
                verdicts[name] = verdict_cache.verdict(
                    box, x, selected[name], score, max_draws=max_draws, map_=maps.get(name), seed=seed
                )
    except KeyboardInterrupt:
        interrupted = True
    order = sorted(verdicts, key=lambda name: verdicts[name].rank)
    return RankedExplanations(
        _top_outputs_text(box, x), _target_class_name(box, int(score[0])), {n: verdicts[n] for n in order},
        {n: maps[n] for n in order if n in maps}, interrupted, {n: _partial_settings_text(selected[n]) for n in order},
    )  # fmt: skip


def _partial_settings_text(method: AttributionMethodFn) -> str:
    """The settings of a `functools.partial`."""
    keywords = method.keywords if isinstance(method, partial) else {}
    return "".join(f", {name}={value}" for name, value in keywords.items())


def _target_class_name(box: Box, k: int) -> str:
    return f"output {box.classes[k]}" if box.outputs == "regression" else box.classes[k]


def _top_outputs_text(box: Box, x: Tensor) -> str:
    """The largest outputs in words."""
    logits = box(x)
    values = logits if box.outputs == "regression" else box.probs_from_logits(logits)
    top = torch.topk(mean_over_positions(values)[0], min(N_PRINTED_TOP_OUTPUTS, values.shape[1]))
    format_value = (lambda v: f"{v:.3g}") if box.outputs == "regression" else format_named_prob
    pairs = zip(top.values.tolist(), top.indices.tolist(), strict=True)
    return ", ".join(f"{box.classes[k]} ({format_value(v)})" for v, k in pairs)


# -- as a command ----------------------------------------------------------------------------------------------------


def run_explain(
    box: Box,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    methods: Sequence[str] | None = None,
    target: str | None = None,
    max_examples: int = DEFAULT_MAX_EXAMPLES,
    seed: int = 0,
    quiet: bool = False,
) -> list[RankedExplanations]:
    """Explain the inputs in a file or folder: print each ranking, write its maps as a figure and its numbers as JSON.

    They are written to `out`; of several inputs, to a folder of each there. Verdicts are cached in `out`. Ctrl-C keeps
    the explanations so far. Raises DataError, InputError and WriteError.
    """
    (x, names), out = read_inputs(source, box, check_int("--n", max_examples, minimum=1)), Path(out)
    selected = find_attribution_methods(box, list(methods)) if methods else candidates(box)
    k = None if target is None else parse_class(target, box)
    verdicts_path = out / VERDICTS_FILE
    verdict_cache = VerdictCache(verdicts_path.read_bytes() if verdicts_path.is_file() else b"")
    explanations = list[RankedExplanations]()
    for i, name in enumerate(names):
        explanation = explain(box, x[i : i + 1], selected, k, seed=seed, verdict_cache=verdict_cache, quiet=quiet)
        write_bytes(verdicts_path, verdict_cache.to_json())
        figure_path = _write_explanation(box, x[i], explanation, out / name if len(names) > 1 else out)
        _print_explanation(explanation, figure_path, name if len(names) > 1 else "", has_legend=i == len(names) - 1)
        explanations.append(explanation)
        if explanation.interrupted:
            break
    return explanations


def _write_explanation(box: Box, x: Tensor, explanation: RankedExplanations, folder: Path) -> Path:
    """The numbers and the figure of one input (...); returns the figure's path."""
    text = json.dumps(nonfinite_to_none(explanation.to_dict()), indent=1, ensure_ascii=False)
    write_bytes(folder / RESULTS_FILE, encode_utf8(text))
    methods = {name: v.method for name, v in explanation.verdicts.items()}
    badges = {methods[name]: v.badge for name, v in explanation.verdicts.items()}
    maps = {methods[name]: m for name, m in explanation.maps.items()}
    title = f"Why {explanation.target_name}? The model predicts {explanation.prediction}"
    image = images_or_none(x[None])
    if image is None:
        columns = column_names(box, "", x.numel())
        rows = {name: m.flatten() for name, m in maps.items()}
        return save(row_explanation_sheet(x.flatten(), rows, badges, columns, title=title), folder / FIGURE_FILE)
    image_maps = {name: images[0] for name, m in maps.items() if (images := images_or_none(m)) is not None}
    return save(explanation_sheet(image[0], image_maps, badges, title=title), folder / FIGURE_FILE)


COLOR_BY_GRADE = dict(zip(GRADES, ("green", "yellow", "red", "dim"), strict=True))
VERDICT_TABLE_LEGEND = (
    "randomization: rank correlation of the map with the map after the weights of the model's upper half are "
    "randomized; near 0 is good. relevance gain: how much sooner the score falls when what the map marks is removed "
    "first than when it is removed last; 0 is a random order. One example decides only what is clear: "
    "unboxed report judges methods on more."
)


def _print_explanation(explanation: RankedExplanations, figure_path: Path, name: str, *, has_legend: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    console = Console()
    prediction, target = f"The model predicts {explanation.prediction}", explanation.target_name
    lead = f"{f'{name}: ' * bool(name)}{prediction}. Why {target}? The most trustworthy map first:"
    console.print(escape(lead), highlight=False)
    method, badge = Column("method", no_wrap=True), Column("", no_wrap=True)
    columns = ("why", "random-\nization", "relevance\ngain")
    table = Table(method, badge, *columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, v in explanation.verdicts.items():
        figures = [v.figures.get(name, math.nan) for name in ("randomization", "removal")]
        texts = ["" if math.isnan(value) else f"{value:.2f}" for value in figures]
        why = (v.reason if v.grade != NOT_APPLICABLE else v.sentence) + explanation.settings.get(name, "")
        table.add_row(escape(v.method), f"[{COLOR_BY_GRADE[v.grade]}]{v.badge}[/]", escape(why), *texts)
    console.print(table)
    if sentence := fill_dependence_sentence(explanation.verdicts):
        console.print(sentence, highlight=False)
    if has_legend:
        console.print(VERDICT_TABLE_LEGEND, style="dim", highlight=False)
    console.print(f"maps: {figure_path}", highlight=False)
