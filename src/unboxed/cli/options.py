"""The options that commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _print_version(is_requested: bool) -> None:
    if is_requested:
        from .. import __version__

        typer.echo(f"unboxed {__version__}")
        raise typer.Exit


DATA_HELP = (
    "digits, mnist, fashion-mnist (:train, :test), a folder of images, an image, a CSV, TSV or Parquet file of "
    "(file, label), a .npy or .npz array, or module:factory"
)
DataOption = Annotated[str, typer.Option(help=f"{DATA_HELP}.")]
TrainingDataOption = Annotated[
    str | None,
    typer.Option(help="digits, mnist, fashion-mnist, or a folder of train/ and test/ (default: those of its recipe)."),
]
INPUT_ARGUMENT = typer.Argument(
    metavar="INPUT",
    help="An image file; of a model of tables a CSV, TSV or Parquet file with its columns; a .npy or .npz array; "
    "or a folder of these. Of a model of texts a CSV, TSV, JSONL or .txt file of them.",
)
InputArgument = Annotated[Path, INPUT_ARGUMENT]
OptionalInputArgument = Annotated[Path | None, INPUT_ARGUMENT]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder for the page, the images and the numbers.")]
SeedOption = Annotated[int, typer.Option(help="Seed of all random draws: same seed, same result.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars; notes and errors stay, on stderr.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the numbers as JSON to stdout, and nothing else.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
OpenBrowserOption = Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")]
VersionOption = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
]
MODEL_HELP = "zoo:NAME, module:factory, path/to/file.py:factory, a torch.export file (.pt2), or a Hugging Face folder."
ModelOption = Annotated[str, typer.Option(help=MODEL_HELP)]
WeightsOption = Annotated[
    Path | None,
    typer.Option(help="A safetensors file, a checkpoint, or a folder of shards; w.pt:model_ema takes a part of it."),
]
ShapeOption = Annotated[
    str | None, typer.Option(help="Shape of one image, where the model does not define it: 3,224,224.")
]
MeanOption = Annotated[str | None, typer.Option(help="Normalization mean: a value, or one per channel.")]
StdOption = Annotated[str | None, typer.Option(help="Normalization standard deviation: a value, or one per channel.")]
ClassesOption = Annotated[
    str | None,
    typer.Option(help="Class names: a,b,c or a file: one per line, or JSON such as imagenet_class_index.json."),
]
OutputsOption = Annotated[
    str | None,
    typer.Option(help="logits, logprobs, probs, binary, multilabel or regression, to override what is inferred."),
]
OutputOption = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Which tensor is the output, where the model returns several: a key or an index."),
]
DeviceOption = Annotated[str | None, typer.Option(help="Where the model runs: cpu, cuda, cuda:1 or mps.")]
MethodsFromOption = Annotated[
    list[str] | None,
    typer.Option(help="A Python file or module with methods of your own; repeat for several."),
]
BaselineOption = Annotated[
    str | None,
    typer.Option(
        help="What methods compare an image or row with: black, white, mean, blurred, random, a number, or a file "
        "whose mean it is, as of the training data of a table whose model normalizes (default: the methods' own)."
    ),
]
LabelOption = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="The column of labels of a table, also of texts (default: one called so)."),
]
RootOption = Annotated[Path | None, typer.Option(help="Folder that holds the MNIST files (default: the user's cache).")]
