"""The command `unboxed demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..app import app
from ..options import (
    DebugOption,
    OpenBrowserOption,
    OutOption,
    QuietOption,
    SeedOption,
)
from ..parsing import (
    current_command_line,
    errors_as_exit_codes,
    print_report_path_and_exit_on_failure,
)

if TYPE_CHECKING:
    from ...report import Report

N_DEMO_TRAINING_TEXTS, N_DEMO_TEXTS = 1500, 200


@app.command()
def demo(
    text: Annotated[bool, typer.Option("--text", help="A small classifier of made-up reviews instead.")] = False,
    out: OutOption = Path("out"),
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    show: OpenBrowserOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a small model on real handwritten digits, then open it. Takes about a minute."""
    with errors_as_exit_codes(debug):
        import torch

        from ... import data, loading, training, zoo
        from ...box import Box
        from ...report import report as write

        if text:
            path = write_text_demo(out, seed, quiet)
            print_report_path_and_exit_on_failure(path, show, f"wrote {path.path}: open it in a browser")
            return
        torch.set_num_threads(1)  # threads of so small a model mostly wait for each other
        model, inputs = zoo.load("digits-cnn", weights=None, seed=seed)
        train, test = data.digits("train"), data.digits("test")
        history = training.fit(model, inputs, train, test, **training.recipe("digits-cnn"), seed=seed, quiet=quiet)
        if history.interrupted:
            raise KeyboardInterrupt
        box = Box(model, inputs, classes=test.classes, outputs="logits")
        judge = loading.load("zoo:digits-judge")
        settings: dict[str, Any] = {"seed": seed, "quiet": quiet, "command": current_command_line()}
        report_result = write(box, test, out, judge=judge, training=train, **settings)
        print_report_path_and_exit_on_failure(report_result, show, f"wrote {report_result.path}: open it in a browser")


def write_text_demo(out: Path, seed: int, quiet: bool) -> Report:
    """Train a small transformer on made-up reviews of films, and open it; the model is saved in `out`/model."""
    import torch

    from ... import data
    from ...box import Box
    from ...data.reviews import review_words
    from ...inputs.tokens import Tokens
    from ...report import report as write
    from ...training.text_classifier import train_text_classifier

    torch.set_num_threads(1)
    train, test = data.reviews(N_DEMO_TRAINING_TEXTS, seed=seed), data.reviews(N_DEMO_TEXTS, seed=seed + 1)
    model, tokenizer = train_text_classifier(train.texts, train.labels, train.classes, words=review_words(), seed=seed)
    box = Box(model, Tokens(tokenizer))
    written = write(box, test, out, seed=seed, quiet=quiet, command=current_command_line())
    model.save_pretrained(out / "model")  # type: ignore[operator]
    tokenizer.save_pretrained(out / "model")
    return written
