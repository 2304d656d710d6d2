"""What commands do before and after their work: words into values, errors and results into words."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import InputError, UnboxedError, UnboxedWarning

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from ..box import Box
    from ..inputs.pixels import Pixels
    from ..report import Report

OPTIONS = re.compile(r'\b(outputs|classes|root|norm)="(\w+)"')  # as errors name them to callers in Python
IN_PYTHON = re.compile(r"pass inputs=ub\.Pixels\(.*?, on the command line ")
REFUSED, FAILED, STOPPED = 2, 1, 130  # exit codes: bad input, a section failed, Ctrl-C


def tolerant() -> None:
    """What is printed may hold a file name that is no UTF-8: it is written escaped, and must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def answering(debug: bool) -> Iterator[None]:
    """An error of ours is one line on stderr and an exit code; no traceback unless asked for."""
    tolerant()
    with warnings.catch_warnings():
        warnings.showwarning = warned  # type: ignore[assignment]
        try:
            yield
        except UnboxedError as error:
            if debug:
                traceback.print_exc()
            said = IN_PYTHON.sub("give ", OPTIONS.sub(r"--\1 \2", str(error)))
            typer.secho(f"error: {said}", fg="red", err=True)
            raise typer.Exit(REFUSED) from None
        except KeyboardInterrupt:
            typer.secho("stopped", err=True)
            raise typer.Exit(STOPPED) from None


def warned(message: Warning | str, category: type[Warning], *where: Any) -> None:
    if issubclass(category, UnboxedWarning):
        typer.secho(f"note: {message}", fg="yellow", err=True)
    else:
        typer.echo(warnings.formatwarning(message, category, *where[:2]), err=True, nl=False)


def tell(made: Report, show: bool, said: str | None = None) -> None:
    """Say where the page is, and which sections are missing from it."""
    typer.echo(said or made.path)
    if show:
        typer.launch(Path(made.path).resolve().as_uri())
    for section, why in made.failures.items():
        typer.secho(f"section {section} failed: {why}", fg="red", err=True)
    if made.failures:
        raise typer.Exit(STOPPED if any("interrupted" in why for why in made.failures.values()) else FAILED)


def judge_of(spec: str, box: Box, seed: int) -> Box:
    """A second model; it looks at the same images, so its inputs are the box's unless it says otherwise."""
    from .. import loading
    from ..box import Box

    model, own = loading.model(spec, seed=seed)
    return Box(model, own or box.inputs, classes=box.classes)


def named_by(images: Dataset[Any], box: Box) -> Box:
    """The box with the data's class names, if there are as many as the model has outputs."""
    from ..box import Box

    names = getattr(images, "classes", None)
    if not names or len(names) != len(box.classes):
        return box
    return Box(box.model, box.inputs, classes=names, outputs=box.outputs)


def typed() -> str:
    return shlex.join(["unboxed", *sys.argv[1:]])


def pixels(shape: str | None, mean: str | None, std: str | None) -> Pixels | None:
    from ..inputs.pixels import Pixels

    if shape is None:
        if mean or std:
            raise InputError("--mean and --std need --shape: channels,height,width of one image, such as 3,224,224")
        return None
    sizes = numbers("--shape", shape)
    if len(sizes) != 3 or any(s < 1 or s != int(s) for s in sizes):
        raise InputError(f"--shape is channels,height,width of one image, such as 3,224,224; got {shape}")
    channels, height, width = map(int, sizes)
    return Pixels((channels, height, width), numbers("--mean", mean or "0"), numbers("--std", std or "1"))


def numbers(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} wants numbers separated by commas, without spaces; got {text!r}") from None


def amount(option: str, text: str) -> float:
    """A number, or a fraction such as 8/255."""
    above, stroke, below = text.partition("/")
    try:
        return float(above) / (float(below) if stroke else 1.0)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{option} wants a number or a fraction, such as 0.03 or 8/255; got {text!r}") from None


def classes_of(text: str | None) -> tuple[str, ...] | None:
    """Class names from `a,b,c` or from a file with one a line."""
    if text is None:
        return None
    path = Path(text)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    return tuple(name.strip() for name in lines if name.strip())
