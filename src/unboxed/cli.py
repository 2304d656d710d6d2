"""The command line: one command a function. Heavy imports happen inside them, so that --help is quick."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .errors import DataError, InputError, UnboxedError, UnboxedWarning

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from .box import Box
    from .inputs import Pixels
    from .report import Report

OPTIONS = re.compile(r'\b(outputs|classes|root)="(\w+)"')  # as errors name them to callers in Python
UNTRAINED = "no --weights: the net is as its factory made it"
REFUSED, FAILED, STOPPED = 2, 1, 130  # exit codes: bad input, a section failed, Ctrl-C

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Open the black box of a PyTorch network: what it sees, what it looks for, why it answered, what fools it.",
)


checks = typer.Typer(no_args_is_help=True, help="Experiments that show whether methods can be believed.")
app.add_typer(checks, name="checks")


def _version(asked: bool) -> None:
    if asked:
        from . import __version__

        typer.echo(f"unboxed {__version__}")
        raise typer.Exit


Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the page, the pictures and the numbers.")]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Show = Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")]
Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]
Model = Annotated[
    str, typer.Option(help="zoo:NAME, module:factory, path/to/file.py:factory, or a torch.export file (.pt2).")
]
Weights = Annotated[Path | None, typer.Option(help="A safetensors file or a checkpoint of weights.")]
Shape = Annotated[str | None, typer.Option(help="Of one image: 3,224,224, if the model doesn't say.")]
Mean = Annotated[str | None, typer.Option(help="What training subtracted: a value, or one a channel.")]
Std = Annotated[str | None, typer.Option(help="What training divided by.")]
Classes = Annotated[str | None, typer.Option(help="Names: a,b,c or a file with one a line.")]
Meaning = Annotated[
    str | None, typer.Option(help="logits, logprobs, probs, multilabel or regression, if not recognized rightly.")
]
Root = Annotated[Path | None, typer.Option(help="Folder that holds the MNIST files (default: the user's cache).")]


@app.callback()
def options(version: Version = False) -> None:
    """What every command shares."""


@app.command()
def demo(
    out: Out = Path("out"), seed: Seed = 0, quiet: Quiet = False, show: Show = False, debug: Debug = False
) -> None:
    """Train a small network on real handwritten digits, then open it. Takes about a minute."""
    with _answering(debug):
        import torch

        from . import data, loading, training, zoo
        from .box import Box
        from .report import report as write

        torch.set_num_threads(1)  # threads of so small a net mostly wait for each other, and on a busy machine for long
        net, inputs = zoo.load("digits-cnn", weights=None, seed=seed)
        train, test = data.digits("train"), data.digits("test")
        history = training.fit(net, inputs, train, test, **training.recipe("digits-cnn"), seed=seed, quiet=quiet)
        if history.interrupted:
            raise KeyboardInterrupt
        box = Box(net, inputs, classes=test.classes, outputs="logits")
        judge = loading.load("zoo:digits-judge")
        made = write(box, test, out, judge=judge, seed=seed, quiet=quiet, command=_command())
        _tell(made, show, f"wrote {made.path}: open it in a browser")


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
    outputs: Meaning = None,
    root: Root = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    show: Show = False,
    debug: Debug = False,
) -> None:
    """Open a model on some data: one self-contained page, the pictures, and the numbers."""
    with _answering(debug):
        from . import loading
        from .report import report as write

        names = _classes(classes)
        inputs = _pixels(shape, mean, std)
        box = loading.load(model, weights, inputs=inputs, classes=names, outputs=outputs, seed=seed)  # type: ignore[arg-type]
        images = loading.data_for(data, box, root=root, classes=names)
        box = _named_by(images, box) if names is None else box
        second = _judge(judge, box, seed) if judge else None
        made_anew = weights is None and not model.startswith("zoo:") and not model.endswith(".pt2")
        if made_anew and not quiet:
            typer.secho(f"note: {UNTRAINED}", fg="yellow", err=True)
        command = _command() + (f"  # {UNTRAINED}" if made_anew else "")
        _tell(write(box, images, out, judge=second, seed=seed, quiet=quiet, command=command), show)


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
    outputs: Meaning = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Why did the model answer so? Every method's map of an image, the most believable first, and why to believe it."""
    with _answering(debug):
        if not image.exists():  # before anything heavy is imported
            raise DataError(f"there is no file {image}")
        from . import loading
        from .explaining import command

        inputs, names = _pixels(shape, mean, std), _classes(classes)
        box = loading.load(model, weights, inputs=inputs, classes=names, outputs=outputs, seed=seed)  # type: ignore[arg-type]
        found = command(box, image, out, methods=method, target=target, seed=seed, quiet=quiet)
        if found.interrupted:
            raise KeyboardInterrupt


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A network of the zoo, such as mnist-cnn.")],
    data: Annotated[str | None, typer.Option(help="What to train it on (default: what it is meant for).")] = None,
    epochs: Annotated[int | None, typer.Option(help="Default: the network's own recipe.")] = None,
    defend: Annotated[str | None, typer.Option(help="Against attacks: fast, pgd or trades.")] = None,
    eps: Annotated[float | None, typer.Option(help="How far attacks go (default: the recipe's, or 0.3).")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File to go on from, after an interruption.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the weights (.safetensors).")] = None,
    root: Root = None,
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a network of the zoo; save its weights and a card that says how they were made."""
    with _answering(debug):
        from . import training

        made = training.train(
            name, data=data, epochs=epochs, defend=defend, eps=eps, checkpoint=checkpoint, out=out, root=root,
            seed=seed, quiet=quiet,
        )  # fmt: skip
        typer.echo(made)
        if made.card["interrupted"]:
            raise KeyboardInterrupt


@checks.command()
def shortcut(
    marked: Annotated[str, typer.Option(help="Digits that bear a mark, each at its place: 3, or 3,8, or all.")] = "3",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures and the numbers.")] = Path("out"),
    seed: Seed = 0,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Teach a net a false cue, a mark that gives the digit away: which methods show it? Takes about a minute."""
    with _answering(debug):
        import torch
        from rich.console import Console

        from .report.shortcut import mark_of, planted_shortcut, table

        torch.set_num_threads(1)  # as for the demo
        found, path = planted_shortcut(out, mark_of(marked), seed=seed, quiet=quiet, command=_command())
        Console().print(table(found))
        typer.echo(f"wrote {path}")
        if found.interrupted:
            raise KeyboardInterrupt


@app.command()
def methods() -> None:
    """List the methods: what their pictures tell, and what they do not."""
    from rich.console import Console
    from rich.table import Column, Table

    from .cards import cards

    table = Table("family", Column("method", no_wrap=True), "tells", "does not tell", show_lines=True)
    for card in cards():
        table.add_row(card.family, card.method.__name__, card.tells, card.not_tells)
    Console().print(table)


def main() -> None:
    app(prog_name="unboxed")


@contextlib.contextmanager
def _answering(debug: bool) -> Iterator[None]:
    """An error of ours is one line on stderr and an exit code; no traceback unless asked for."""
    with warnings.catch_warnings():
        warnings.showwarning = _warned  # type: ignore[assignment]
        try:
            yield
        except UnboxedError as error:
            if debug:
                traceback.print_exc()
            said = OPTIONS.sub(r"--\1 \2", str(error))
            typer.secho(f"error: {said}", fg="red", err=True)
            raise typer.Exit(REFUSED) from None
        except KeyboardInterrupt:
            typer.secho("stopped", err=True)
            raise typer.Exit(STOPPED) from None


def _warned(message: Warning | str, category: type[Warning], *where: Any) -> None:
    if issubclass(category, UnboxedWarning):
        typer.secho(f"note: {message}", fg="yellow", err=True)
    else:
        typer.echo(warnings.formatwarning(message, category, *where[:2]), err=True, nl=False)


def _tell(made: Report, show: bool, said: str | None = None) -> None:
    """Say where the page is, and which sections are missing from it."""
    typer.echo(said or made.path)
    if show:
        typer.launch(Path(made.path).resolve().as_uri())
    for section, why in made.failures.items():
        typer.secho(f"section {section} failed: {why}", fg="red", err=True)
    if made.failures:
        raise typer.Exit(STOPPED if any("interrupted" in why for why in made.failures.values()) else FAILED)


def _judge(spec: str, box: Box, seed: int) -> Box:
    """A second model; it looks at the same images, so its inputs are the box's unless it says otherwise."""
    from . import loading
    from .box import Box

    net, own = loading.model(spec, seed=seed)
    return Box(net, own or box.inputs, classes=box.classes)


def _named_by(images: Dataset[Any], box: Box) -> Box:
    """The box with the data's class names, if there are as many as the net has outputs."""
    from .box import Box

    names = getattr(images, "classes", None)
    if not names or len(names) != len(box.classes):
        return box
    return Box(box.net, box.inputs, classes=names, outputs=box.outputs)


def _command() -> str:
    return shlex.join(["unboxed", *sys.argv[1:]])


def _pixels(shape: str | None, mean: str | None, std: str | None) -> Pixels | None:
    from .inputs import Pixels

    if shape is None:
        if mean or std:
            raise InputError("--mean and --std need --shape: channels,height,width of one image, such as 3,224,224")
        return None
    sizes = _numbers("--shape", shape)
    if len(sizes) != 3 or any(s < 1 or s != int(s) for s in sizes):
        raise InputError(f"--shape is channels,height,width of one image, such as 3,224,224; got {shape}")
    channels, height, width = map(int, sizes)
    return Pixels((channels, height, width), _numbers("--mean", mean or "0"), _numbers("--std", std or "1"))


def _numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} wants numbers separated by commas, without spaces; got {text!r}") from None


def _classes(text: str | None) -> tuple[str, ...] | None:
    """Class names from `a,b,c` or from a file with one a line."""
    if text is None:
        return None
    path = Path(text)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    return tuple(name.strip() for name in lines if name.strip())
