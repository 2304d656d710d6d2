"""The command line: one function per command. Heavy imports happen inside them, so that --help is fast.

A command moves into a file of its own where it is longer than a call of the library; what Python users need does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import DataError
from ..validation import missing_path_text
from .options import (
    DATA_HELP,
    ClassesOption,
    DataOption,
    DebugOption,
    InputArgument,
    MeanOption,
    MethodsFromOption,
    ModelOption,
    OpenBrowserOption,
    OutOption,
    OutputsOption,
    QuietOption,
    RootOption,
    SeedOption,
    ShapeOption,
    StdOption,
    TrainingDataOption,
    VersionOption,
    WeightsOption,
)
from .parsing import (
    command_line,
    errors_as_exit_codes,
    escape_undecodable_output,
    load_judge,
    note_skipped_files,
    parse_classes,
    parse_fraction,
    parse_pixels,
    print_report_path_and_exit_on_failure,
    with_data_classes,
)
from .run import MethodCommandGroup

NO_WEIGHTS_NOTE = "no --weights: the model is as its factory returns it"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Open the black box of a PyTorch model: what it sees, what it looks for, why it predicts so, what fools it.",
)

checks = typer.Typer(no_args_is_help=True, help="Experiments that show whether methods can be trusted.")
app.add_typer(checks, name="checks")


RUN_HELP = "Run any method, by its name, on any model and data."
app.add_typer(typer.Typer(cls=MethodCommandGroup, no_args_is_help=True, help=RUN_HELP), name="run")


@app.callback()
def options(methods_from: MethodsFromOption = None, version: VersionOption = False) -> None:
    """The options of every command."""
    if methods_from:
        with errors_as_exit_codes(debug=False):
            from ..loading.factories import import_methods

            for source in methods_from:
                import_methods(source)


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

        from .. import data, loading, training, zoo
        from ..box import Box
        from ..report import report as write

        torch.set_num_threads(1)  # threads of so small a model mostly wait for each other
        model, inputs = zoo.load("digits-cnn", weights=None, seed=seed)
        train, test = data.digits("train"), data.digits("test")
        history = training.fit(model, inputs, train, test, **training.recipe("digits-cnn"), seed=seed, quiet=quiet)
        if history.interrupted:
            raise KeyboardInterrupt
        box = Box(model, inputs, classes=test.classes, outputs="logits")
        judge = loading.load("zoo:digits-judge")
        settings: dict[str, Any] = {"seed": seed, "quiet": quiet, "command": command_line()}
        report_result = write(box, test, out, judge=judge, training=train, **settings)
        print_report_path_and_exit_on_failure(report_result, show, f"wrote {report_result.path}: open it in a browser")


@app.command()
def report(
    model: ModelOption, data: DataOption, weights: WeightsOption = None, out: OutOption = Path("out"),
    training: Annotated[
        str | None, typer.Option("--train", help=f"Labeled training examples, for who taught it that: {DATA_HELP}.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="A second, robust model that classifies the generated images.")
    ] = None,
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, root: RootOption = None, seed: SeedOption = 0, quiet: QuietOption = False,
    show: OpenBrowserOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Open a model on some data: one self-contained page, with its images and numbers beside it."""
    with errors_as_exit_codes(debug):
        from .. import loading
        from ..loading.models import has_own_weights
        from ..report import report as write

        class_names = parse_classes(classes)
        inputs = parse_pixels(shape, mean, std)
        box = loading.load(model, weights, inputs=inputs, classes=class_names, outputs=outputs, seed=seed)  # type: ignore[arg-type]
        images = loading.data_for(data, box, root=root, classes=class_names, quiet=quiet)
        box = with_data_classes(images, box) if class_names is None else box
        train_data = None if training is None else loading.data_for(training, box, root=root, classes=class_names)
        judge_box = load_judge(judge, box, seed) if judge else None
        is_untrained = weights is None and not has_own_weights(model)
        if is_untrained and not quiet:
            typer.secho(f"note: {NO_WEIGHTS_NOTE}", fg="yellow", err=True)
        command = command_line() + (f"  # {NO_WEIGHTS_NOTE}" if is_untrained else "")
        print_report_path_and_exit_on_failure(
            write(box, images, out, judge=judge_box, training=train_data, seed=seed, quiet=quiet, command=command), show
        )


@app.command()
def explain(
    source: InputArgument, model: ModelOption,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="Attribution method, by name; repeat for several (default: all)."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Class to explain, by name or number (default: the predicted one).")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Explain the first N inputs of a folder, an array or a table.")] = 4,
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures and numbers.")] = Path("explained"),
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, seed: SeedOption = 0, quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Why this prediction? Every attribution method on an input, ranked by whether its map can be trusted."""
    with errors_as_exit_codes(debug):
        if not source.exists():  # before anything heavy is imported
            raise DataError(missing_path_text(source))
        from .. import loading
        from .explain import run_explain

        inputs, class_names = parse_pixels(shape, mean, std), parse_classes(classes)
        box = loading.load(model, weights, inputs=inputs, classes=class_names, outputs=outputs, seed=seed)  # type: ignore[arg-type]
        settings: dict[str, Any] = {"target": target, "max_examples": n, "seed": seed, "quiet": quiet}
        explanations = run_explain(box, source, out, methods=method, **settings)
        if any(explanation.interrupted for explanation in explanations):
            raise KeyboardInterrupt


@app.command()
def attack(
    model: ModelOption, data: DataOption,
    eps: Annotated[list[str], typer.Option(help="Perturbation budget in [0, 1]: 0.03 or 8/255; repeat for a curve.")],
    attacks: Annotated[
        list[str] | None, typer.Option("--attack", help="Attack, by name (see unboxed methods); repeat for several.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1 (default: the first that the attacks take).")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Use only the first N examples.")] = 500,
    bits: Annotated[
        int | None, typer.Option(help="8: adversarial images of 8 bits per value, saved as PNG files.")
    ] = None,
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images, numbers and checkpoint.")] = Path(
        "attacked"
    ),
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, root: RootOption = None, seed: SeedOption = 0, quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """What fools the model? Clean and robust accuracy, adversarial images, and checks of gradient masking.

    After an interruption the same command continues.
    """
    with errors_as_exit_codes(debug):
        from .. import loading
        from .attack import run_attack

        eps_values = [parse_fraction("--eps", e) for e in eps]
        inputs, class_names = parse_pixels(shape, mean, std), parse_classes(classes)
        box = loading.load(model, weights, inputs=inputs, classes=class_names, outputs=outputs, seed=seed)  # type: ignore[arg-type]
        images = loading.data_for(data, box, root=root, classes=class_names, quiet=quiet)
        note_skipped_files(images)
        box = with_data_classes(images, box) if class_names is None else box
        settings: dict[str, Any] = {"norm": norm, "max_examples": n, "bits": bits, "seed": seed, "quiet": quiet}
        result = run_attack(box, images, out, attacks=attacks or (), eps=eps_values, **settings)
        if result.interrupted:
            raise KeyboardInterrupt


@app.command()
def influence(
    model: ModelOption, train: Annotated[str, typer.Option(help=f"Labeled training examples: {DATA_HELP}.")],
    query: Annotated[str, typer.Option(help=f"What to explain: {DATA_HELP}.")],
    method: Annotated[
        str, typer.Option(help="A method of the family influence that needs training examples alone, by name.")
    ] = "influence_functions",
    n: Annotated[int, typer.Option("--n", help="Explain the first N queries.")] = 4,
    train_n: Annotated[int | None, typer.Option(help="Use only the first N training examples.")] = None,
    k: Annotated[int, typer.Option("--k", help="Helpful and harmful examples to list of each query.")] = 8,
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figure and numbers.")] = Path("influence"),
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, root: RootOption = None, seed: SeedOption = 0, quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Who taught it that? The training examples that made an answer likelier, and those that made it less likely."""
    with errors_as_exit_codes(debug):
        from .. import loading
        from .influence import run_influence

        inputs, class_names = parse_pixels(shape, mean, std), parse_classes(classes)
        box = loading.load(model, weights, inputs=inputs, classes=class_names, outputs=outputs, seed=seed)  # type: ignore[arg-type]
        settings: dict[str, Any] = {"root": root, "classes": class_names, "quiet": quiet}
        train_data, queries = (loading.data_for(spec, box, **settings) for spec in (train, query))
        box = with_data_classes(train_data, box) if class_names is None else box
        run_influence(box, train_data, queries, out, method=method, n_queries=n, n_train=train_n, k=k, seed=seed)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A model of the zoo, such as mnist-cnn.")],
    data: TrainingDataOption = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs (default: that of its recipe).")] = None,
    defend: Annotated[
        str | None, typer.Option(help="Adversarial training: a key of unboxed.training.DEFENSES, such as pgd.")
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Perturbation budget: 0.3 or 8/255 (default: that of its recipe, or 0.3).")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File from which an interrupted training continues.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the weights (.safetensors).")] = None,
    root: RootOption = None, seed: SeedOption = 0, quiet: QuietOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Train a model of the zoo; save its weights and a card that says how they were made."""
    with errors_as_exit_codes(debug):
        from .. import training

        eps_value = None if eps is None else parse_fraction("--eps", eps)
        settings = {"data": data, "epochs": epochs, "defend": defend, "eps": eps_value, "checkpoint": checkpoint}
        training_result = training.train(name, **settings, out=out, root=root, seed=seed, quiet=quiet)  # type: ignore[arg-type]
        typer.echo(training_result)
        if training_result.card["interrupted"]:
            raise KeyboardInterrupt


@checks.command()
def shortcut(
    marked: Annotated[
        str, typer.Option(help="Digits that get a trigger, each at its own position: 3, or 3,8, or all.")
    ] = "3",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images and the numbers.")] = Path("out"),
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a model on a spurious cue, a trigger that gives the digit away: which methods show it? About a minute."""
    with errors_as_exit_codes(debug):
        import torch
        from rich.console import Console

        from ..report.shortcut import parse_trigger, results_table, run_shortcut_check

        torch.set_num_threads(1)  # as for the demo
        result, path = run_shortcut_check(out, parse_trigger(marked), seed=seed, quiet=quiet, command=command_line())
        Console().print(results_table(result))
        typer.echo(f"wrote {path}")
        if result.interrupted:
            raise KeyboardInterrupt


@app.command()
def doctor(
    model: ModelOption,
    data: Annotated[str | None, typer.Option(help=f"Data to try methods on: {DATA_HELP} (default: noise).")] = None,
    weights: WeightsOption = None, shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None,
    classes: ClassesOption = None, outputs: OutputsOption = None, root: RootOption = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    quiet: QuietOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """What works on a model and what does not, and why: every method is tried by its smallest useful call."""
    with errors_as_exit_codes(debug):
        from .. import loading
        from .doctor import run_doctor

        inputs, class_names = parse_pixels(shape, mean, std), parse_classes(classes)
        box = loading.load(model, weights, inputs=inputs, classes=class_names, outputs=outputs)  # type: ignore[arg-type]
        images = None if data is None else loading.data_for(data, box, root=root, classes=class_names, quiet=quiet)
        run_doctor(box, images, as_json=json, quiet=quiet or json)


@app.command()
def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method, with its settings (default: the list of all).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """List the methods, or one method's settings: what it shows, what it does not, what it needs, its source."""
    with errors_as_exit_codes(debug):
        from .methods import print_method, print_methods

        if name is None:
            print_methods(as_json=json)
        else:
            print_method(name, as_json=json)


def main() -> None:
    escape_undecodable_output()
    app(prog_name="unboxed")
