"""`unboxed run METHOD`: any method, by its name, on any model and data. Its options are its card's settings."""

from __future__ import annotations

import inspect
import json as json_module
import re
import shutil
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..errors import DataError, InputError
from ..settings import Setting, check_takes_texts
from .options import (
    DATA_HELP,
    ClassesOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    LabelOption,
    MeanOption,
    ModelOption,
    OutputOption,
    OutputsOption,
    QuietOption,
    RootOption,
    ShapeOption,
    StdOption,
    WeightsOption,
)
from .setting_values import option_name, parse_setting_value, single_or_several

if TYPE_CHECKING:
    from ..box import Box
    from ..cards import Card

SETTING_KINDS_READ_FROM_DATA = (
    "inputs",
    "labels",
    "data",
)  # kinds of the settings x, y and data, which come from --data
SETTING_KINDS_PARSED_AFTER_CLASSES = (
    "target",
    "labels",
    "objective",
    "inputs",
    "data",
)  # parsed once the classes are known
DEFAULT_N_EXAMPLES = 8
MAX_PRINTED_LINES, MIN_PRINTED_WIDTH = 10, 60  # of a result
TENSORS_FILE = "tensors.safetensors"  # all values, of which the numbers have a summary
CLASHING_OPTION_NAME_PREFIX = "method_"  # of a setting with the name of a shared option


class MethodCommand(TyperCommand):
    """A command that names all required options that are missing at once."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not {"--help", *ctx.help_option_names} & set(args):
            given, _, _ = self.make_parser(ctx).parse_args(list(args))
            missing = [p.opts[0] for p in self.params if p.required and p.name not in given]
            if len(missing) > 1:
                ctx.fail(f"Missing options {', '.join(map(repr, missing))}.")
        return super().parse_args(ctx, args)


class MethodCommandGroup(TyperGroup):
    """One command per card."""

    def list_commands(self, ctx: Any) -> list[str]:
        from ..cards import cards

        return [card.key for card in cards()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from ..cards import find_card
        from .functions import refuse_function
        from .parsing import errors_as_exit_codes

        with errors_as_exit_codes(debug=False):
            refuse_function(cmd_name, ctx.parent.command.commands if ctx and ctx.parent else ())
            return typer.main.get_command(make_method_command(find_card(cmd_name)))


def make_method_command(card: Card) -> typer.Typer:
    """The command of one method: the options that all methods share, and one per setting."""
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    summary = f"{card.shows}\n\nIt does not show: {card.does_not_show}"
    app.command(card.key, cls=MethodCommand, help=summary, short_help=card.shows, epilog=f"Source: {card.source}")(
        _make_command_function(card)
    )
    return app


def _make_command_function(card: Card) -> Callable[..., None]:
    """A function with the parameters that the command line of a method takes."""
    settings = {_unclashing_option_name(s): s for s in card.settings.values() if _is_command_line_option(s)}

    def command(**values: Any) -> None:
        from .parsing import errors_as_exit_codes

        texts = {settings[name].name: values.pop(name) for name in settings}
        with errors_as_exit_codes(values.pop("debug")):
            run(card, {name: text for name, text in texts.items() if text is not None}, **values)

    shared = [*inspect.signature(shared_options, eval_str=True).parameters.values()]
    options = [*shared, *(_setting_to_option_parameter(n, s) for n, s in settings.items())]
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in command.__signature__.parameters.values()}  # type: ignore[attr-defined]
    return command


def shared_options(
    *,
    model: ModelOption,
    data: Annotated[str | None, typer.Option(help=f"{DATA_HELP}.")] = None,
    n: Annotated[int, typer.Option("--n", help="Use the first N examples.")] = DEFAULT_N_EXAMPLES,
    compare_with: Annotated[
        str | None,
        typer.Option(help="A second model, for methods that compare two (default: the first one)."),
    ] = None,
    weights: WeightsOption = None,
    shape: ShapeOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    classes: ClassesOption = None,
    outputs: OutputsOption = None,
    output: OutputOption = None,
    device: DeviceOption = None,
    root: RootOption = None,
    label: LabelOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures and numbers.")] = Path("result"),
    quiet: QuietOption = False,
    json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """The options of every method: their names, types, defaults and help."""


SHARED_OPTION_NAMES = {*inspect.signature(shared_options).parameters}


def _is_command_line_option(setting: Setting) -> bool:
    """Whether a setting is an option: x, y and data come from --data, other inputs and data have options.

    `quiet` is the option of all commands.
    """
    if setting.name == "quiet":
        return False
    return setting.kind not in SETTING_KINDS_READ_FROM_DATA or setting.name not in ("x", "y", "data")


def required_options(card: Card) -> list[Setting]:
    """The settings that a command line must give, beside the model and the data."""
    return [s for s in card.settings.values() if _is_command_line_option(s) and _is_required_option(s)]


def _is_required_option(setting: Setting) -> bool:
    return setting.is_required and not _is_labels_of_data(setting)


def _is_labels_of_data(setting: Setting) -> bool:
    """Whether it holds the labels of the inputs, which the data have unless they are given."""
    return setting.name == "labels" and setting.kind == "labels" and setting.is_required


def _unclashing_option_name(setting: Setting) -> str:
    clash = setting.name in SHARED_OPTION_NAMES
    return f"{CLASHING_OPTION_NAME_PREFIX}{setting.name}" if clash else setting.name


def _setting_to_option_parameter(name: str, setting: Setting) -> inspect.Parameter:
    """A setting as an option, whose text is parsed once the model is open."""
    unit = f" [{setting.unit}]" if setting.unit else ""
    limits = f" {setting.range[0].upper()}{setting.range[1:]}." if setting.range else ""
    default = "" if setting.is_required or setting.default is None else f" Default: {setting.default}."
    default = " Default: those of the data." if _is_labels_of_data(setting) else default
    option = typer.Option(
        option_name(name), help=f"{setting.help}{unit}{limits}{default}", metavar=setting.kind.upper()
    )
    is_required = _is_required_option(setting)
    annotation: Any = Annotated[str, option] if is_required else Annotated[str | None, option]
    default_value = inspect.Parameter.empty if is_required else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default_value, annotation=annotation)


def run(
    card: Card, texts: Mapping[str, str], *, model: str, data: str | None, n: int, compare_with: str | None,
    weights: Path | None, shape: str | None, mean: str | None, std: str | None, classes: str | None,
    outputs: str | None, output: str | None = None, device: str | None = None,
    root: Path | None, label: str | None = None, out: Path, quiet: bool, json: bool = False,
) -> Any:  # fmt: skip
    """Run a method with settings given as text; write its figures and numbers to `out`, and print a summary.

    Raises InputError, DataError and WriteError.
    """
    from .. import loading
    from .parsing import box_with_names_of_data, open_box, open_dataset

    box, names = open_box(model, weights, shape, mean, std, classes, outputs, output, device)
    if getattr(box.inputs, "is_text", False):  # before the data are read as something else
        check_takes_texts(card.method)
    other = None if compare_with is None else loading.load(compare_with, device=device)
    parse_settings = partial(_parse_settings, card, texts, other, label)
    settings = parse_settings(box, is_after_classes=False)
    quiet = quiet or json
    images = None if data is None else open_dataset(data, box, root=root, classes=names, quiet=quiet, label=label)
    box = box if images is None or names is not None else box_with_names_of_data(box, images)
    settings |= parse_settings(box, is_after_classes=True)
    settings |= {"quiet": quiet} if "quiet" in card.settings else {}
    examples = arguments_from_data(card, box, images, n, given=settings)
    result = card.method(*_boxes_for_method(card, box, other), **examples, **settings)
    data_of_result = settings.get("train", images if "data" in examples else examples.get("x"))
    write_result(card, box, result, out, data=data_of_result, as_json=json)
    return result


def _parse_settings(
    card: Card, texts: Mapping[str, str], other: Box | None, label: str | None, box: Box, *, is_after_classes: bool
) -> dict[str, Any]:
    """The values of the settings of kinds that need the classes' names, or of the others; names that end in "_b" are of
    the second model."""
    is_after = {name: card.settings[name].kind in SETTING_KINDS_PARSED_AFTER_CLASSES for name in texts}
    chosen = {name: text for name, text in texts.items() if is_after[name] == is_after_classes}
    boxes = {name: other if other is not None and name.endswith("_b") else box for name in chosen}
    values = {name: parse_setting_value(card.settings[name], text, boxes[name], label) for name, text in chosen.items()}
    return {name: single_or_several(card, name, value) for name, value in values.items()}


def _boxes_for_method(card: Card, box: Box, other: Box | None) -> list[Box]:
    """As many models as the method takes: without a second one, the layers of the first are compared."""
    wanted = len(inspect.signature(card.method).parameters) - len(card.settings)
    return [box, box if other is None else other][:wanted]


def arguments_from_data(
    card: Card, box: Box, images: Any, n_examples: int, given: Collection[str] = ()
) -> dict[str, Any]:
    """The inputs, labels and data of a method, from the first n examples, but those that are given.

    Raises DataError where there are none.
    """
    from ..data.texts import Texts
    from ..engine.read.examples import first_inputs

    wanted = {
        s.name: s for s in card.settings.values()
        if s.name not in {*given, "quiet"} and (not _is_command_line_option(s) or _is_labels_of_data(s))
    }  # fmt: skip
    labels = next((s for name, s in wanted.items() if name in ("y", "labels")), None)
    if images is None:
        if missing := [name for name, s in wanted.items() if s.is_required]:
            raise DataError(f"{card.key} needs {' and '.join(missing)}: give examples with --data")
        return {}
    values: dict[str, Any] = {"data": images}
    if isinstance(images, Texts):
        values["x"], values["y"] = images.first(n_examples)
        if values["y"] is None and labels is not None and labels.is_required:
            raise DataError(f"{card.key} needs labels, and {images.name} has texts without them")
    elif labels is not None:
        x, values["y"] = _inputs_and_labels(box, images, n_examples, is_required=labels.is_required)
        values["x"] = box.restore_structure(x)
    elif "x" in wanted:
        values["x"] = box.restore_structure(first_inputs(box, images, n_examples))
    values["labels"] = values.get("y")
    return {name: values[name] for name in wanted}


def _inputs_and_labels(box: Box, images: Any, n_examples: int, *, is_required: bool) -> tuple[Any, Any]:
    """The first inputs (N, ...) and their classes (N,), or what their outputs should be.

    None where labels may be absent, or do not have the form of the outputs.
    """
    from ..engine.read.class_labels import has_class_labels
    from ..engine.read.examples import examples_with_optional_labels, first_inputs, labeled_examples
    from ..engine.read.output_values import examples_with_output_values

    if has_class_labels(box):
        return (labeled_examples if is_required else examples_with_optional_labels)(box, images, n_examples)
    try:
        return examples_with_output_values(box, images, n_examples)
    except InputError:  # of labels, or of the inputs themselves, which raise again
        return first_inputs(box, images, n_examples), None


def write_result(card: Card, box: Box, result: Any, out: Path, data: Any = None, as_json: bool = False) -> None:
    """The figures as PNG files, all tensors as safetensors, and a summary as JSON; prints the paths, or the JSON.

    `data` are the examples that were given, for figures that show them.
    """
    import safetensors.torch
    import torch

    from ..atomic_write import encode_utf8, write_bytes
    from ..engine.conservation import Conservation
    from ..engine.result_views import ResultTuple
    from ..engine.results import json_summary, nonfinite_to_none, result_tensors
    from ..plots.figures import figures
    from ..plots.files import save
    from .parsing import skipped_files

    tensors = {name or "result": t.detach().cpu() for name, t in result_tensors(result).items()}
    unshared = {k.lstrip("."): v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    write_bytes(out / TENSORS_FILE, safetensors.torch.save(unshared))
    numbers = {"method": card.key, "model": type(box.model).__name__, "result": json_summary(result)}
    numbers["tensors"] = TENSORS_FILE
    if isinstance(verdict := getattr(result, "verdict", None), str):
        numbers |= {"verdict": verdict, "reason": result.reason}
    if skipped := skipped_files(data):
        numbers["skipped"] = skipped
    text = json_module.dumps(nonfinite_to_none(numbers), indent=1, ensure_ascii=False, default=str)
    write_bytes(out / "result.json", encode_utf8(text))
    images = {_figure_file_stem(name): image for name, image in figures(result, box, data=data).items()}
    paths = [save(image, out / f"{name}.png") for name, image in images.items()]
    if as_json:
        typer.echo(text)
        return
    parts = [f"{card.name}:", *map(str, result)] if isinstance(result, ResultTuple) else [f"{card.name}: {result}"]
    for line in _printed_lines("\n".join(parts)):
        typer.echo(line)
    if "verdict" in numbers and numbers["reason"] not in parts[0]:
        parts = [f"{numbers['verdict']}: {numbers['reason']}"]
        for line in _printed_lines(parts[0]):
            typer.echo(line)
    for part in getattr(result, "extras", {}).values():
        if isinstance(part, Conservation):
            typer.echo(str(part))
    for path in [*paths, out / "result.json", out / TENSORS_FILE]:
        typer.echo(f"wrote {path}")


def _printed_lines(text: str) -> Iterator[str]:
    """The first lines, wrapped at spaces to the width of the terminal."""
    lines = text.splitlines()
    width = max(MIN_PRINTED_WIDTH, shutil.get_terminal_size().columns)
    for line in lines[:MAX_PRINTED_LINES]:
        yield from textwrap.wrap(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    if len(lines) > MAX_PRINTED_LINES:
        yield f"… and {len(lines) - MAX_PRINTED_LINES} more lines"


def _figure_file_stem(name: str) -> str:
    """The name of a figure as the name of a file: letters, digits, "_" and "-" of whatever a layer is called."""
    return re.sub(r"[^\w-]+", "_", name).strip("_")
