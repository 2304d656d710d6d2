"""Write docs/methods.md from the cards: nothing in it is written by hand, and a test compares.

python docs/build_methods.py            # the text
python docs/build_methods.py --figures  # the figures too: each card's example on the digits model, about 3 minutes
python docs/build_methods.py --figures lime pgd  # those of some methods
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from unboxed.cards import DESCRIPTION_BY_RETURN_KIND, FAMILIES, Card, cards
from unboxed.cli.methods import card_notes, docstring_section
from unboxed.settings import Setting

HERE = Path(__file__).parent
PAGE, FIGURES = HERE / "methods.md", HERE / "pictures" / "methods"
INTRODUCTION = """# Methods

Every method, made from its card by `docs/build_methods.py`. `unboxed methods NAME` prints the same in a terminal,
`unboxed run NAME` runs it, and `help(ub.attribution.lime)` says more.
"""
WIDTH_PIXELS, MAX_HEIGHT_PIXELS, MAX_BYTES = 640, 760, 40_000  # of a figure, at most


def page() -> str:
    """The text of docs/methods.md."""
    parts = [INTRODUCTION]
    for family in FAMILIES:
        own = [card for card in cards(family) if str(card.method.__module__).startswith("unboxed.")]
        links = ", ".join(f"[{card.name}](#{card.key})" for card in own)
        parts += [f"## {family}\n\n{links}\n", *map(_section, own)]
    return "\n".join(parts)


def _section(card: Card) -> str:
    lines = [f'<a id="{card.key}"></a>\n### {card.name}: `ub.{card.family}.{card.key}`\n', f"{card.shows}\n"]
    if (FIGURES / f"{card.key}.png").is_file():
        lines.append(f"![{card.name}: {_alt(card)}](pictures/methods/{card.key}.png)\n")
    lines.append(f"*It does not show:* {card.does_not_show}\n")
    lines += [f"- {title}: {text}" for title, text in card_notes(card).items()]
    lines.append(f"\n| setting | kind | default | range | meaning |\n|---|---|---|---|---|\n{_settings(card)}\n")
    if example := docstring_section(card, "Example"):
        lines.append(f"```pycon\n{example}\n```\n")
    return "\n".join(lines)


def _alt(card: Card) -> str:
    """What the figure shows, for those who do not see it."""
    return f"{DESCRIPTION_BY_RETURN_KIND[card.returns]}, for the digits model".replace("[", "").replace("]", "")


def _settings(card: Card) -> str:
    return "\n".join(f"| {' | '.join(_cells(s))} |" for s in card.settings.values())


def _cells(setting: Setting) -> tuple[str, ...]:
    default = "required" if setting.is_required else f"`{setting.default!r}`"
    meaning = f"{setting.help} [{setting.unit}]" if setting.unit else setting.help
    return tuple(
        cell.replace("|", "\\|") for cell in (f"`{setting.name}`", setting.kind, default, setting.range, meaning)
    )


# -- figures -----------------------------------------------------------------------------------------------------------

DIGITS = (0, 1, 3, 8)  # the first test image of each
N_EXAMPLES = {"tsne": 600, "smoothed": 100, "corruptions": 200}  # where four examples show little
N_ATTACKED = 2
N_DATA = 600  # examples that a method's `data` are
COARSE_SETTINGS = (
    "steps", "n_samples", "queries", "restarts", "k", "window", "stride", "segments", "cells", "n_searches", "layers",
    "binary_search_steps", "initial_num_evals", "n0", "n", "n_bins", "severities", "layers_a", "layers_b",
)  # fmt: skip
"""What examples set to small values to be quick; figures are made with the defaults."""


ARGUMENTS: dict[str, dict[str, Any]] = {
    "receptive_field": {"layer": "conv2"},
    "projections": {"layer": "conv2"},
    "inversion": {"layer": "conv2"},
    "inversions": {"layers": ["conv1", "conv2", "fc1"]},
    "grad_cam": {"target": None},
    "guided_grad_cam": {"target": None},
    "fooling": {"target": [0, 1, 2, 3, 4]},
    "cka": {"layers_a": ["conv1", "conv2", "fc1", "fc2"], "layers_b": ["conv1", "conv2", "fc1", "fc2"]},
    "ablation": {"layer": "fc1", "units": None},
    "patching": {"layers": ["conv1", "conv2", "fc1", "fc2"]},
    "source": {"segments": 1},
    "influence_functions": {"solver": "ekfac", "damping": None, "labels": None},
    "suspected_mislabels": {"n_neighbors": 20},
    "removal": {"max_fraction": 0.05},
    "group": {"damping": None},
    "hotflip": {"max_swaps": 3, "n_candidates": 16},
    "probe": {"attribute": None, "layers": None, "n_controls": 2, "n_random": 39, "description_length": False},
}
"""Arguments in place of an example's, which are there to be run on every model."""


def draw_figures(names: Sequence[str] = ()) -> None:
    """The first figure of each card's example on the digits model, or of those named, as PNG files."""
    import torch

    import unboxed as ub
    from unboxed.atomic_write import write_bytes
    from unboxed.errors import UnboxedError
    from unboxed.plots import figures

    torch.set_num_threads(1)
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    data = ub.data.digits("test").first(N_DATA)
    for card in cards():
        if names and card.key not in names:
            continue
        x, y = _examples(card, data)
        opened = box
        if "texts" in card.needs:
            opened, x, y = _text_examples()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                call, given = _Call(card, data), (x, y) if "x" in card.settings else None
                result = card.example(call, opened, x, y)
                images = figures(result, opened, data=call.train or (data if call.has_data else given))
            except UnboxedError as error:
                print(f"{card.key}: {error}")
                continue
        if images:
            write_bytes(FIGURES / f"{card.key}.png", small_png(next(iter(images.values()))))


def _examples(card: Card, data: Any) -> tuple[Any, Any]:
    x, y = data
    if card.key in N_EXAMPLES:
        return x[: N_EXAMPLES[card.key]], y[: N_EXAMPLES[card.key]]
    rows = [int((y == k).nonzero()[0]) for k in DIGITS]
    rows = rows[:N_ATTACKED] if card.family == "adversarial" and card.returns == "adversarial" else rows
    return x[rows], y[rows]


def _text_examples() -> tuple[Any, list[str], Any]:
    """A small classifier of reviews, trained here, four reviews and their classes."""
    import torch

    import unboxed as ub
    from unboxed.data.reviews import review_words
    from unboxed.training.text_classifier import train_text_classifier

    train, test = ub.data.reviews(1000), ub.data.reviews(len(DIGITS), seed=1)
    model, tokenizer = train_text_classifier(train.texts, train.labels, train.classes, words=review_words())
    return ub.Box(model, ub.Tokens(tokenizer)), test.texts, torch.tensor(test.labels)


class _Call:
    """A method as an example calls it, but with its defaults where the example is coarse, and with more data."""

    def __init__(self, card: Card, data: Any) -> None:
        self.card, self.data, self.has_data = card, data, False
        self.train: Any = None  # the training examples of an influence method
        self.__name__ = card.key

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        settings = {name: value for name, value in kwargs.items() if name not in COARSE_SETTINGS}
        call = inspect.signature(self.card.method).bind(*args, **settings)
        if "data" in call.arguments:
            self.has_data = True
            needs_labels = isinstance(call.arguments["data"], tuple) or "attribute" in call.arguments
            call.arguments["data"] = self.data if needs_labels else self.data[0]
        if {"train", "training"} & call.arguments.keys():
            self._set_training_data(call.arguments)
        call.arguments |= ARGUMENTS.get(self.card.key, {})
        return self.card.method(*call.args, **call.kwargs)

    def _set_training_data(self, arguments: dict[str, Any]) -> None:
        """Digits in place of random training examples, and a training of a small model where one is run again."""
        import torch

        import unboxed as ub

        self.train = ub.data.digits("train").first(N_DATA)
        if "train" in arguments:
            arguments["train"] = self.train
            return
        torch.manual_seed(0)
        layers = torch.nn.Flatten(), torch.nn.Linear(784, 64), torch.nn.GELU(), torch.nn.Linear(64, 10)
        inputs = arguments["box"].inputs
        training = ub.influence.ModelTraining(torch.nn.Sequential(*layers), inputs, self.train, epochs=6, batch_size=64)
        arguments |= {"training": training, "box": training.box(training.run()), "labels": None}


def small_png(image: Image.Image) -> bytes:
    """A figure as a file of at most MAX_BYTES: cut below a whole row where it is tall, with fewer colors if need be."""
    from unboxed.plots import png_bytes

    image = image.convert("RGB")
    if image.width > WIDTH_PIXELS:
        image = image.resize((WIDTH_PIXELS, round(image.height * WIDTH_PIXELS / image.width)), Image.Resampling.LANCZOS)
    if image.height > MAX_HEIGHT_PIXELS:
        blank = [top for top in range(MAX_HEIGHT_PIXELS // 2, MAX_HEIGHT_PIXELS) if _is_blank(image, top)]
        image = image.crop((0, 0, image.width, blank[-1] if blank else MAX_HEIGHT_PIXELS))
    content = png_bytes(image)
    for n_colors in (256, 64, 16):
        if len(content) <= MAX_BYTES:
            return content
        content = png_bytes(image.quantize(n_colors, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))
    half = (image.width // 2, image.height // 2)
    return content if len(content) <= MAX_BYTES else png_bytes(image.resize(half, Image.Resampling.LANCZOS))


def _is_blank(image: Image.Image, top: int, height: int = 12) -> bool:
    return image.crop((0, top - height, image.width, top)).getextrema() == ((255, 255),) * 3


if __name__ == "__main__":
    if "--figures" in sys.argv:
        draw_figures([name for name in sys.argv[1:] if name != "--figures"])
    PAGE.write_text(page(), encoding="utf-8")
