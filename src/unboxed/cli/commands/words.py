"""The command `unboxed words`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..app import app
from ..options import DebugOption, SeedOption
from ..parsing import errors_as_exit_codes


@app.command()
def words(
    vectors: Annotated[Path, typer.Option(help="Word vectors: GloVe, word2vec or fastText, text or binary, also .gz.")],
    nearest: Annotated[list[str] | None, typer.Option(help="A word whose nearest words to list; repeat.")] = None,
    analogy: Annotated[
        list[str] | None, typer.Option(help='Three words, "man king woman": man is to king as woman is to ...; repeat.')
    ] = None,
    tests: Annotated[
        Path | None, typer.Option(help="Association tests of your own in place of the published ones: a JSON file of "
        "{test: {targets: {name: words, name: words}, attributes: {name: words, name: words}}}.")
    ] = None,
    bias_words: Annotated[
        Path | None, typer.Option(help="Another attribute than gender: a JSON file of {defining: [[word, word], ...]}, "
        "and maybe equalize and specific.")
    ] = None,
    weat: Annotated[bool, typer.Option(help="Make the association tests (WEAT).")] = True,
    bias: Annotated[bool, typer.Option(help="Measure the bias, and debias: what remains of it.")] = True,
    map: Annotated[bool, typer.Option(help="Make a t-SNE map.")] = True,
    map_n: Annotated[int, typer.Option(help="Words of the map, the most frequent ones.")] = 1000,
    max_words: Annotated[int | None, typer.Option(help="Read only the first N words of the file.")] = None,
    ignore_case: Annotated[
        bool, typer.Option(help="Look words up in lower case, too: for vectors of lower-case words, as GloVe 6B.")
    ] = False,
    k: Annotated[int, typer.Option("--k", help="Nearest words, and answers of an analogy, to list.")] = 10,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures and numbers.")] = Path("words"),
    seed: SeedOption = 0, debug: DebugOption = False,
) -> None:  # fmt: skip
    """What is in word vectors? Nearest words, analogies, association tests, bias before and after, a map."""
    with errors_as_exit_codes(debug):
        from ...language import load_vectors
        from ..words import run_words

        run_words(
            load_vectors(vectors, max_words=max_words, ignore_case=ignore_case),
            out,
            nearest=nearest or [],
            analogies=analogy or [],
            tests=tests,
            bias_words=bias_words,
            with_weat=weat,
            with_bias=bias,
            n_map_words=map_n if map else 0,
            k=k,
            seed=seed,
        )
