"""The command `unboxed demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


@app.command()
def demo(
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
