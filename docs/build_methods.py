"""Write docs/methods.md from the cards: nothing in it is written by hand, and a test compares.

python docs/build_methods.py            # the text
python docs/build_methods.py --figures  # the figures too: each card's example on the digits model
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from unboxed.cards import AXIOMS, FAMILIES, NEEDS, RETURNS, Card, cards
from unboxed.settings import Setting

HERE = Path(__file__).parent
PAGE, FIGURES = HERE / "methods.md", HERE / "pictures" / "methods"
INTRODUCTION = """# Methods

Every method, made from its card by `docs/build_methods.py`. `unboxed methods NAME` prints the same in a terminal,
`unboxed run NAME` runs it, and `help(ub.attribution.lime)` says more.
"""
WIDTH_PIXELS = 640  # of a figure, at most


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
        lines.append(f"![{card.name} of digits](pictures/methods/{card.key}.png)\n")
    lines.append(f"*It does not show:* {card.does_not_show}\n")
    lines += [f"- {title}: {text}" for title, text in _facts(card).items() if text]
    lines.append(f"\n| setting | kind | default | range | meaning |\n|---|---|---|---|---|\n{_settings(card)}\n")
    if card.exempt:
        lines.append("Contracts that do not apply: " + "; ".join(f"{k} ({v})" for k, v in card.exempt.items()) + ".\n")
    return "\n".join(lines)


def _facts(card: Card) -> dict[str, str]:
    return {
        "Source": card.source,
        "Needs": "; ".join(NEEDS[need] for need in card.needs),
        "Gives": RETURNS[card.returns],
        "Keeps exactly": "; ".join(f"{axiom} ({AXIOMS[axiom]})" for axiom in card.axioms),
        "Norms": ", ".join(card.norms),
        "Model runs per input": f"about {card.n_runs():,.0f}",
    }


def _settings(card: Card) -> str:
    return "\n".join(f"| {' | '.join(_cells(s))} |" for s in card.settings.values())


def _cells(setting: Setting) -> tuple[str, ...]:
    default = "required" if setting.required else f"`{setting.default!r}`"
    meaning = f"{setting.help} [{setting.unit}]" if setting.unit else setting.help
    return tuple(
        cell.replace("|", "\\|") for cell in (f"`{setting.name}`", setting.kind, default, setting.range, meaning)
    )


def draw_figures() -> None:
    """The first figure of each card's example on the digits model, as PNG files."""
    import torch

    import unboxed as ub
    from unboxed.errors import UnboxedError
    from unboxed.plots.figures import figures
    from unboxed.plots.files import as_image, save

    torch.set_num_threads(1)
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, y = ub.data.digits("test").first(4)
    FIGURES.mkdir(parents=True, exist_ok=True)
    for card in cards():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                images = figures(card.example(card.method, box, x, y), box)
            except UnboxedError as error:
                print(f"{card.key}: {error}")
                continue
        if images:
            image = as_image(next(iter(images.values())))
            image.thumbnail((WIDTH_PIXELS, 4 * WIDTH_PIXELS))
            save(image, FIGURES / f"{card.key}.png")


if __name__ == "__main__":
    if "--figures" in sys.argv:
        draw_figures()
    PAGE.write_text(page(), encoding="utf-8")
