"""The command line: one command a function. Heavy imports happen inside them, so that --help is quick.

One command is a file where it is longer than a call of the library; nothing that Python could use moves in here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import DataError
from .options import (
    Classes,
    Debug,
    Mean,
    MethodsFrom,
    Model,
    OpenBrowser,
    Out,
    Outputs,
    Quiet,
    Root,
    Seed,
    Shape,
    Std,
    Version,
    Weights,
)
from .parsing import (
    command_line,
    errors_as_exit_codes,
    escape_undecodable_output,
    load_judge,
    parse_classes,
    parse_fraction,
    parse_pixels,
    print_report_path,
    with_data_classes,
)
from .run import MethodGroup

UNTRAINED_NOTE = "no --weights: the model is as its factory made it"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Open the black box of a PyTorch model: what it sees, what it looks for, why it answered, what fools it.",
)

checks = typer.Typer(no_args_is_help=True, help="Experiments that show whether methods can be believed.")
app.add_typer(checks, name="checks")


app.add_typer(
    typer.Typer(cls=MethodGroup, no_args_is_help=True, help="Run any method, by its name, on any model and data."),
    name="run",
)


@app.callback()
def options(methods_from: MethodsFrom = None, version: Version = False) -> None:
    """What every command shares."""
    if methods_from:
        with errors_as_exit_codes(debug=False):
            from ..loading.factories import import_methods

            for source in methods_from:
                import_methods(source)


@app.command()
def demo(
    out: Out = Path("out"), seed: Seed = 0, quiet: Quiet = False, show: OpenBrowser = False, debug: Debug = False
) -> None:
    """Train a small model on real handwritten digits, then open it. Takes about a minute."""
    with errors_as_exit_codes(debug):
        import torch

        from .. import data, loading, training, zoo
        from ..box import Box
        from ..report import report as write

        torch.set_num_threads(
            1
        )  # threads of so small a model mostly wait for each other, and on a busy machine for long
        model, inputs = zoo.load("digits-cnn", weights=None, seed=seed)
        train, test = data.digits("train"), data.digits("test")
        history = training.fit(model, inputs, train, test, **training.recipe("digits-cnn"), seed=seed, quiet=quiet)
        if history.interrupted:
            raise KeyboardInterrupt
        box = Box(model, inputs, classes=test.classes, outputs="logits")
        judge = loading.load("zoo:digits-judge")
        report_result = write(box, test, out, judge=judge, seed=seed, quiet=quiet, command=command_line())
        print_report_path(report_result, show, f"wrote {report_result.path}: open it in a browser")


@app.command()
def report(
    model: Model,
    data: Annotated[
        str, typer.Option(help="digits, mnist, fashion-mnist (:train, :test), a folder of images, or module:factory.")
    ],
    weights: Weights = None,
    out: Out = Path("out"),
    judge: Annotated[str | None, typer.Option(help="A second model that judges the class images.")] = None,
    shape: Shape = None,
    mean: Mean = None,
    std: Std = None,
    classes: Classes = None,
    outputs: Outputs = None,
    root: Root = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    show: OpenBrowser = False,
    debug: Debug = False,
) -> None:
    """Open a model on some data: one self-contained page, the pictures, and the numbers."""
    with errors_as_exit_codes(debug):
        from .. import loading
        from ..report import report as write

        class_names = parse_classes(classes)
        inputs = parse_pixels(shape, mean, std)
        box = loading.load(model, weights, inputs=inputs, classes=class_names, outputs=outputs, seed=seed)  # type: ignore[arg-type]
        images = loading.data_for(data, box, root=root, classes=class_names)
        box = with_data_classes(images, box) if class_names is None else box
        judge_box = load_judge(judge, box, seed) if judge else None
        is_untrained = weights is None and not model.startswith("zoo:") and not model.endswith(".pt2")
        if is_untrained and not quiet:
            typer.secho(f"note: {UNTRAINED_NOTE}", fg="yellow", err=True)
        command = command_line() + (f"  # {UNTRAINED_NOTE}" if is_untrained else "")
        print_report_path(write(box, images, out, judge=judge_box, seed=seed, quiet=quiet, command=command), show)


@app.command()
def explain(
    image: Annotated[Path, typer.Argument(help="A picture: PNG, JPEG, WebP, ...")],
    model: Model,
    method: Annotated[
        list[str] | None, typer.Option("--method", help="A method, by name; may be given again (default: all).")
    ] = None,
    target: Annotated[str | None, typer.Option(help="A class, by name or number (default: the answer).")] = None,
    weights: Weights = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the picture and numbers.")] = Path("explained"),
    shape: Shape = None,
    mean: Mean = None,
    std: Std = None,
    classes: Classes = None,
    outputs: Outputs = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Why did the model answer so? Every method's map of an image, the most believable first, and why to believe it."""
    with errors_as_exit_codes(debug):
        if not image.exists():  # before anything heavy is imported
            raise DataError(f"there is no file {image}")
        from .. import loading
        from .explain import run_explain

        inputs, class_names = parse_pixels(shape, mean, std), parse_classes(classes)
        box = loading.load(model, weights, inputs=inputs, classes=class_names, outputs=outputs, seed=seed)  # type: ignore[arg-type]
        explanation = run_explain(box, image, out, methods=method, target=target, seed=seed, quiet=quiet)
        if explanation.interrupted:
            raise KeyboardInterrupt


@app.command()
def attack(
    model: Model,
    data: Annotated[
        str, typer.Option(help="digits, mnist, fashion-mnist (:train, :test), a folder of images, or module:factory.")
    ],
    eps: Annotated[
        list[str], typer.Option(help="Perturbation budget(s) in [0, 1]: 0.03 or 8/255; repeat for a curve.")
    ],
    attacks: Annotated[
        list[str] | None, typer.Option("--attack", help="Attack(s) by name: auto_attack, pgd, ...; repeat for several.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1 (default: the first that the attacks take).")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Use only the first N examples.")] = 500,
    bits: Annotated[
        int | None, typer.Option(help="Bits per value, 8 for PNG: adversarial images are rounded to it and saved.")
    ] = None,
    weights: Weights = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for figure, numbers and checkpoint.")] = Path(
        "attacked"
    ),
    shape: Shape = None,
    mean: Mean = None,
    std: Std = None,
    classes: Classes = None,
    outputs: Outputs = None,
    root: Root = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """What fools the model? Clean and robust accuracy, adversarial images, and checks for gradient masking.

    If it is stopped, the same command resumes it.
    """
    with errors_as_exit_codes(debug):
        from .. import loading
        from .attack import run_attack

        eps_values = [parse_fraction("--eps", e) for e in eps]
        inputs, class_names = parse_pixels(shape, mean, std), parse_classes(classes)
        box = loading.load(model, weights, inputs=inputs, classes=class_names, outputs=outputs, seed=seed)  # type: ignore[arg-type]
        images = loading.data_for(data, box, root=root, classes=class_names)
        box = with_data_classes(images, box) if class_names is None else box
        result = run_attack(
            box,
            images,
            out,
            attacks=attacks or (),
            eps=eps_values,
            norm=norm,
            max_examples=n,
            bits=bits,
            seed=seed,
            quiet=quiet,
        )
        if result.interrupted:
            raise KeyboardInterrupt


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A network of the zoo, such as mnist-cnn.")],
    data: Annotated[str | None, typer.Option(help="What to train it on (default: what it is meant for).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: the network's own recipe.")] = None,
    defend: Annotated[str | None, typer.Option(help="Against attacks: fast, pgd or trades.")] = None,
    eps: Annotated[
        str | None, typer.Option(help="How far attacks go: 0.3 or 8/255 (default: the recipe's, or 0.3).")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File to go on from, after an interruption.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the weights (.safetensors).")] = None,
    root: Root = None, seed: Seed = 0, quiet: Quiet = False, debug: Debug = False,
) -> None:  # fmt: skip
    """Train a network of the zoo; save its weights and a card that says how they were made."""
    with errors_as_exit_codes(debug):
        from .. import training

        eps_value = None if eps is None else parse_fraction("--eps", eps)
        settings = {
            "data": data,
            "epochs": epochs,
            "defend": defend,
            "eps": eps_value,
            "checkpoint": checkpoint,
            "out": out,
        }
        training_result = training.train(name, **settings, root=root, seed=seed, quiet=quiet)  # type: ignore[arg-type]
        typer.echo(training_result)
        if training_result.card["interrupted"]:
            raise KeyboardInterrupt


@checks.command()
def shortcut(
    marked: Annotated[str, typer.Option(help="Digits that bear a mark, each at its place: 3, or 3,8, or all.")] = "3",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures and the numbers.")] = Path("out"),
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Teach a model a false cue, a mark that gives the digit away: which methods show it? Takes about a minute."""
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
def methods(
    name: Annotated[
        str | None, typer.Argument(help="One method, with its settings (default: the list of all).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    debug: Debug = False,
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
