"""What commands do before and after their work: words into values, errors and results into words."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import DataError, InputError, UnboxedError, UnboxedWarning, UnclearLabelsError
from ..validation import missing_path_text

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from ..box import Box
    from ..inputs.pixels import Pixels
    from ..report import Report

OBJECTIVE_CODE_PATTERN = r"(-?ub\.logit\(\w+\)(?: - (?:ub\.logit\(\w+\)|[\d.]+))?)"
COMMAND_LINE_ADVICE_BY_PATTERN: Mapping[str, str] = {
    r"\b(outputs|classes|root|norm)=\"(\w+)\"": r"--\1 \2",
    r"Box\(\.\.\., output=('[^']+'|\d+)\) is": r"--output \1 is",
    r"\bpass classes=(?!\S)": "pass --classes",
    r"\bpass x=(?!\S)": "give --data",
    r"ub\.data\.(?:table|texts)\([^()]*\), (--label COLUMN) on the command line": r"\1",
    r"Of a DataFrame or a file, name the column: ub\.data\.table\(.*?\)": "Of a table, name the column: --label COLUMN",
    r"pass inputs=ub\.Pixels\(.*?, on the command line ": "give ",
    r"give eps \(and norm\), or ball= instead of both": "give --eps (and --norm), such as --eps 8/255",
    r"\b(?:attack it by )?ub\.adversarial\.(\w+)\(box, x, (?:eps=([\d.]+), )?objective="
    + OBJECTIVE_CODE_PATTERN
    + r"\)": r'use unboxed run \1 --eps \2 --objective "\3"',
    r"ub\.synthesis\.(\w+)\(box, " + OBJECTIVE_CODE_PATTERN + r"\)": r'use unboxed run \1 --objective "\2"',
    r"\bobjective=" + OBJECTIVE_CODE_PATTERN: r'--objective "\1"',
    r"open it with Box\(\.\.\., output=lambda out: (.+?)\), the mean over positions": (
        r"let the model return \1 of its output out, the mean over positions"
    ),
    r"open one label k by itself: Box\(\.\.\., output=lambda out: (.+?), (--outputs binary)\)": (
        r"let the model return one label k by itself, \1 of its output out, with \2"
    ),
    r"\bbits= ": "--bits ",
    r"\bgive attribute=, a value": "give --attribute FILE:COLUMN, a value",
    r"\bgive segmenter=, a function": "give --segmenter file.py:factory, which makes a function",
    r"\bignore_case=True\b": "--ignore-case",
    r" --eps  ": " ",
    r"\bub\.logit\(": "logit(",
    r"; take examples by \.first\(n\) or in a loop, or remove the file": "; remove the file",
}
"""What errors advise callers in Python, and the same on the command line, in this order."""
EXIT_CODE_BAD_INPUT, EXIT_CODE_SECTION_FAILED, EXIT_CODE_INTERRUPTED = (
    2,
    1,
    130,
)  # exit codes: bad input, a section failed, Ctrl-C


def escape_undecodable_output() -> None:
    """What is printed may hold a file name that is no UTF-8: it is written escaped, and must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def errors_as_exit_codes(debug: bool) -> Iterator[None]:
    """An error of ours is one line on stderr and an exit code; no traceback unless asked for."""
    escape_undecodable_output()
    with warnings.catch_warnings():
        warnings.showwarning = _WarningsAsNotes()  # type: ignore[assignment]
        try:
            yield
        except UnboxedError as error:
            if debug:
                traceback.print_exc()
            typer.secho(f"error: {rewrite_advice_for_command_line(str(error))}", fg="red", err=True)
            raise typer.Exit(EXIT_CODE_BAD_INPUT) from None
        except KeyboardInterrupt:
            typer.secho("stopped", err=True)
            raise typer.Exit(EXIT_CODE_INTERRUPTED) from None


def rewrite_advice_for_command_line(message: str) -> str:
    """An error with the advice as it is followed on the command line."""
    for pattern, replacement in COMMAND_LINE_ADVICE_BY_PATTERN.items():
        message = re.sub(pattern, replacement, message)
    return message


class _WarningsAsNotes:
    """Prints our warnings as notes of one line, each once."""

    def __init__(self) -> None:
        self._printed = set[str]()

    def __call__(self, message: Warning | str, category: type[Warning], *location: Any) -> None:
        if not issubclass(category, UnboxedWarning):
            typer.echo(warnings.formatwarning(message, category, *location[:2]), err=True, nl=False)
        else:
            self.echo(rewrite_advice_for_command_line(str(message)))

    def echo(self, note: str) -> None:
        if note not in self._printed:
            self._printed.add(note)
            typer.secho(f"note: {note}", fg="yellow", err=True)


def print_report_path_and_exit_on_failure(
    report_result: Report, open_browser: bool, message: str | None = None
) -> None:
    """Say where the page is, and which sections are missing from it."""
    typer.echo(message or report_result.path)
    if open_browser:
        typer.launch(Path(report_result.path).resolve().as_uri())
    for section, reason in report_result.failures.items():
        typer.secho(f"section {section} failed: {reason}", fg="red", err=True)
    if report_result.failures:
        raise typer.Exit(
            EXIT_CODE_INTERRUPTED
            if any("interrupted" in why for why in report_result.failures.values())
            else EXIT_CODE_SECTION_FAILED
        )


def open_box(
    model: str, weights: Path | None, shape: str | None, mean: str | None, std: str | None, classes: str | None,
    outputs: str | None, output: str | None = None, device: str | None = None, seed: int = 0,
) -> tuple[Box, tuple[str, ...] | None]:  # fmt: skip
    """The model that the options name, opened, and the class names that were given, if any."""
    from .. import loading

    inputs, names = parse_pixels(shape, mean, std), parse_class_names(classes)
    settings: dict[str, Any] = {"outputs": outputs, "output": parse_output_key(output), "device": device, "seed": seed}
    box = loading.load(model, weights, inputs=inputs, classes=names, **settings)
    return box, names


def refuse_texts(box: Box, command: str) -> None:
    """Raise InputError for a model of texts, of a command that takes none."""
    if getattr(box.inputs, "is_text", False):
        raise InputError(
            f"`unboxed {command}` takes no texts, and this is a model of texts; `unboxed explain` says which words an "
            "answer comes from, `unboxed run hotflip --model MODEL --data texts.csv` which few words flip it, `unboxed "
            "report` both, and `unboxed run` has each method that takes texts (`unboxed methods` lists them)"
        )


def refuse_options(option: str, others: Mapping[str, object]) -> None:
    """Raise InputError for options that are given beside one that takes their place."""
    if given := [name for name, value in others.items() if value is not None]:
        raise InputError(f"{option} takes no {' and no '.join(given)}")


def load_judge(spec: str, box: Box, seed: int) -> Box:
    """A second model for the same images: its inputs are the box's, unless the model defines its own."""
    from ..box import Box
    from ..loading.models import model_with_options

    model, inputs, options = model_with_options(spec, seed=seed)
    return Box(model.to(box.device), inputs or box.inputs, **{**options, "classes": box.classes})


def open_dataset(spec: str, box: Box, **settings: Any) -> Dataset[Any]:
    """The data that an option names, as `loading.dataset_with_model_classes`; what is left out is said on stderr."""
    from .. import loading

    data = loading.dataset_with_model_classes(spec, box, **settings)
    print_skipped_files_note(data)
    return data


def box_with_names_of_data(box: Box, data: Any) -> Box:
    """As `engine.read.class_labels.box_with_names_of_data`."""
    from ..engine.read import class_labels

    return class_labels.box_with_names_of_data(box, data)


def open_inputs(spec: str, box: Box, *, label: str | None = None, **settings: Any) -> Dataset[Any]:
    """As `open_dataset`, of data whose labels are not needed: of a table without that column its inputs alone."""
    import torch
    from torch.utils.data import TensorDataset

    from ..data.tables import inputs_of_table, unlabeled_images
    from ..inputs.features import Features
    from ..inputs.pixels import Pixels

    try:
        return open_dataset(spec, box, label=label, **settings)
    except UnclearLabelsError:
        if not isinstance(box.inputs, Features | Pixels) or not Path(spec).is_file():
            return open_dataset(spec, box, **settings)
        if isinstance(box.inputs, Pixels):
            return unlabeled_images(spec, box.inputs)
        return TensorDataset(torch.as_tensor(inputs_of_table(spec, box.inputs)))


def skipped_files(data: Any) -> list[dict[str, str]]:
    """The files of the data that were left out, and why."""
    return [{"file": str(path), "why": why} for path, why in getattr(data, "skipped", ())]


def print_skipped_files_note(data: Any) -> None:
    """Say on stderr which files were left out when the data were opened; the report lists them on its page."""
    if not (skipped := skipped_files(data)):
        return
    listed = "; ".join(f"{entry['file']}: {entry['why']}" for entry in skipped[:3])
    rest = f"; and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    notes = warnings.showwarning if isinstance(warnings.showwarning, _WarningsAsNotes) else _WarningsAsNotes()
    notes.echo(f"left out (files: {len(skipped)}): {listed}{rest}")


def checkpoint_text(path: Path) -> str:
    return f"checkpoint: {path} (from which the same command continues; may be deleted)"


def current_command_line() -> str:
    return shlex.join(["unboxed", *sys.argv[1:]])


def parse_class(text: str, box: Box) -> int:
    """A class by its name or number. Raises InputError with the class numbers, or with the nearest names."""
    return int(box.class_labels(text, 1))


def parse_baseline(text: str, box: Box) -> Any:
    """A kind of baseline, a number, or the mean of the inputs in a file or folder. Raises DataError and InputError."""
    from ..inputs.examples import TABLE_SUFFIXES
    from ..loading.input_files import read_inputs
    from ..report.mean_row import MAX_ROWS_OF_MEAN

    path = Path(text)
    if path.exists():
        return read_inputs(path, box, MAX_ROWS_OF_MEAN).x.double().mean(0)
    if path.suffix.lower() in TABLE_SUFFIXES:
        raise DataError(f"--baseline: {missing_path_text(path)}")
    try:
        return float(text)
    except ValueError:
        return text


def parse_pixels(shape: str | None, mean: str | None, std: str | None) -> Pixels | None:
    from ..inputs.pixels import Pixels

    if shape is None:
        if mean or std:
            raise InputError("--mean and --std need --shape: channels,height,width of one image, such as 3,224,224")
        return None
    sizes = parse_floats("--shape", shape)
    if len(sizes) != 3 or any(s < 1 or s != int(s) for s in sizes):
        raise InputError(
            f"--shape is channels,height,width of one image, such as 3,224,224; got {shape}. A model of a table says "
            "itself what it takes: let the factory return (model, ub.Features(names)), with the names of its columns"
        )
    channels, height, width = map(int, sizes)
    return Pixels((channels, height, width), parse_floats("--mean", mean or "0"), parse_floats("--std", std or "1"))


def parse_output_key(text: str | None) -> str | int | None:
    """The key of a tensor in what a model returns, or its index in a list."""
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else text


def parse_floats(option: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} wants numbers separated by commas, without spaces; got {text!r}") from None


def parse_fraction(option: str, text: str) -> float:
    """A number, or a fraction such as 8/255."""
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / (float(denominator) if slash else 1.0)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"{option} wants a number or a fraction, such as 0.03 or 8/255; got {text!r}") from None


def split_names(values: list[str] | None) -> list[str] | None:
    """The names in an option that is repeated or separated by commas."""
    return None if values is None else [name.strip() for value in values for name in value.split(",") if name.strip()]


def parse_class_names(text: str | None) -> tuple[str, ...] | None:
    """Class names from `a,b,c` or from a file."""
    from ..inputs.class_files import read_class_names

    if text is None:
        return None
    path = Path(text)
    if path.is_file():
        return read_class_names(path)
    if path.suffix.lower() in (".txt", ".json", ".csv", ".names"):
        raise InputError(f"--classes: {missing_path_text(path)}")
    return tuple(name.strip() for name in text.split(",") if name.strip())
