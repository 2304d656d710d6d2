"""`unboxed words`: what is in word vectors, as tables, figures and numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ..engine.results import json_summary
from ..errors import DataError, InputError
from ..language import (
    WEAT,
    BiasWords,
    Debiased,
    WEATs,
    WordMap,
    WordTest,
    WordVectors,
    bias_direction,
    biased_analogies,
    gender_words,
    hard_debias,
    run_tests,
    word_map,
)
from ..language.vectors import RankedWords
from ..plots.figures import figures
from ..validation import check_int, missing_path_text
from .results import print_written_paths, write_figures_and_facts

RESULTS_FILE, MAP_FILE = "words.json", "map.html"
N_BIASED_ANALOGIES = 20
MIN_PRINTED_BIAS = 5e-5  # smaller ones are due to rounding


def run_words(
    vectors: WordVectors,
    out: str | os.PathLike[str],
    *,
    nearest: Sequence[str] = (),
    analogies: Sequence[str] = (),
    tests: Path | None = None,
    bias_words: Path | None = None,
    with_weat: bool = True,
    with_bias: bool = True,
    n_map_words: int = 1000,
    k: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Print tables, write figures and `words.json` to `out`. Raises DataError, InputError and WriteError."""
    k = check_int("--k", k, minimum=1)
    facts: dict[str, Any] = {"vectors": repr(vectors)}
    drawn = list[Any]()
    if nearest:
        facts["nearest"] = {word: vectors.nearest(word, k) for word in nearest}
        _print_ranked_words(facts["nearest"])
    if analogies:
        facts["analogies"] = {_analogy_equation_text(a): vectors.analogy(*_parse_analogy(a), k) for a in analogies}
        _print_ranked_words(facts["analogies"])
    if with_weat:
        results = run_tests(vectors, None if tests is None else read_association_tests(tests), seed=seed)
        facts["weat"] = json_summary(results)
        drawn.append(results)
        _print_association_tests(results)
    if with_bias:
        bias_facts, debiased = _print_and_return_bias_facts(
            vectors, None if bias_words is None else read_bias_words(bias_words), seed
        )
        facts["bias"] = bias_facts
        drawn.append(debiased)
    if n_map_words:
        result = word_map(vectors, max_words=check_int("--map-n", n_map_words, minimum=3), seed=seed)
        facts["map"] = {"summary": str(result), "neighbors preserved": result.neighbors_preserved}
        facts["map"]["points"] = dict(zip(result.words, result.points.tolist(), strict=True))
        drawn.append(result)
        typer.echo(str(result))
    images = {f"{name}.png": image for result in drawn for name, image in figures(result).items()}
    paths = write_figures_and_facts(images, facts, Path(out), RESULTS_FILE)
    pages = [result.save(Path(out) / MAP_FILE) for result in drawn if isinstance(result, WordMap)]
    print_written_paths([*paths, *pages])
    return facts


def _parse_analogy(text: str) -> tuple[str, str, str]:
    words = text.replace(",", " ").split()
    if len(words) != 3:
        raise InputError(f'--analogy takes three words, such as "man king woman"; got {text!r}')
    return words[0], words[1], words[2]


def _analogy_equation_text(text: str) -> str:
    a, b, c = _parse_analogy(text)
    return f"{a} : {b} = {c} : ?"


def _print_ranked_words(lists: Mapping[str, RankedWords]) -> None:
    table = Table("", "cosine similarity")
    for name, ranked in lists.items():
        table.add_row(name, ", ".join(f"{word} {value:.2f}" for word, value in ranked))
    Console().print(table)


def _print_association_tests(results: WEATs) -> None:
    ddof = next((r.ddof for r in results), 1)
    table = Table("test", "targets by attributes", f"effect size (ddof={ddof})", "95 % by chance", "p", "words")
    for r in results:
        table.add_row(
            r.name, _word_sets_text(r), f"{r.effect_size:.2f}", _null_band_text(r), _p_value_text(r), _n_words_text(r)
        )
    if len(results):
        Console().print(table)
    for r in results:
        if r.note:
            typer.echo(f"{r.name}{r.note}")
    for name, reason in results.skipped.items():
        typer.secho(f"note: {name} was not made: {reason}", fg="yellow", err=True)


def _word_sets_text(result: WEAT) -> str:
    return f"{' / '.join(result.targets)} by {' / '.join(result.attributes)}"


def _null_band_text(result: WEAT) -> str:
    return " to ".join(f"{v:.2f}" for v in result.null_band)


def _p_value_text(result: WEAT) -> str:
    return f"{result.p_value:.2g}" + (" exact" if result.exact else "")


def _n_words_text(result: WEAT) -> str:
    n, n_missing = sum(result.n_words.values()), sum(map(len, result.missing.values()))
    return f"{n} of {n + n_missing}"


def _bias_text(value: float) -> str:
    """A measure of bias; one that is zero but for rounding is 0.

    >>> _bias_text(0.1344), _bias_text(7.62e-09)
    ('0.134', '0')
    """
    return f"{value:.3g}" if abs(value) >= MIN_PRINTED_BIAS else "0"


def _print_and_return_bias_facts(
    vectors: WordVectors, words: BiasWords | None, seed: int
) -> tuple[dict[str, Any], Debiased]:
    """The bias before and after hard debiasing, printed; with the analogies along the first set that was used."""
    chosen = gender_words() if words is None else words
    direction = bias_direction(vectors, chosen)
    debiased = hard_debias(vectors, chosen, seed=seed)
    pair = next((s for s in direction.sets if words is None and "she" in s), direction.sets[0])
    analogies = biased_analogies(vectors, (pair[0], pair[-1]), n=N_BIASED_ANALOGIES)
    typer.echo(str(direction))
    typer.echo(f"{pair[0]} : {pair[-1]} = " + ", ".join(f"{a.x} : {a.y}" for a in analogies))
    caption = "random: direct bias along random directions; the others with the words' sides shuffled"
    names = "bias", "before", "after", "random"
    table = Table(*names, title=debiased.method, title_justify="left", caption=caption, caption_justify="left")
    for name, *values in debiased.bias.rows():
        table.add_row(name, *map(_bias_text, values))
    Console().print(table)
    facts = {
        "direction": str(direction),
        "explained variance": direction.explained_variance.tolist(),
        "analogies": [(a.x, a.y, a.score) for a in analogies],
        "debiased": json_summary(debiased.bias),
        "neutral words": debiased.n_neutral,
        "without a vector": list(debiased.missing),
    }
    return facts, debiased


def read_association_tests(path: Path) -> dict[str, WordTest]:
    """Association tests of a user's own, from a JSON file. Raises DataError."""
    content = _read_json(path)
    keys = {"targets", "attributes"}
    wrong = [n for n, t in content.items() if not isinstance(t, dict) or not keys <= set(t) <= {*keys, "alternatives"}]
    if wrong or not content:
        raise DataError(f"{path} must hold {{test: {{targets: ..., attributes: ...}}}}; wrong: {wrong or 'no tests'}")
    return {name: WordTest(**test) for name, test in content.items()}


def read_bias_words(path: Path) -> BiasWords:
    """The words of an attribute, from a JSON file. Raises DataError."""
    content = _read_json(path)
    if "defining" not in content or not set(content) <= {"defining", "equalize", "specific"}:
        raise DataError(f"{path} must hold defining, and maybe equalize and specific; it holds {sorted(content)}")
    if not all(isinstance(v, list) for v in content.values()):
        raise DataError(f"{path} must hold lists: defining: [[word, word], ...], specific: [word, ...]")
    return BiasWords(**content)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DataError(missing_path_text(path))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object; it holds a {type(content).__name__}")
    return content
