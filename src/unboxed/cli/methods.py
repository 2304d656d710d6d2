"""`unboxed methods`: the cards, as tables or JSON."""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from ..cards import DESCRIPTION_BY_AXIOM, DESCRIPTION_BY_NEED, DESCRIPTION_BY_RETURN_KIND, Card, cards, find_card
from ..settings import Setting
from .example_lines import example_line
from .setting_values import option_name


def print_methods(*, as_json: bool) -> None:
    """All methods, family by family."""
    if as_json:
        typer.echo(json.dumps([method_facts(card) for card in cards()], indent=1, ensure_ascii=False))
        return
    table = Table("family", Column("method", no_wrap=True), "shows", "does not show", show_lines=True)
    for card in cards():
        table.add_row(card.family, card.key, escape(card.shows), escape(card.does_not_show))
    Console().print(table)


def print_method(name: str, *, as_json: bool) -> None:
    """One method with its settings. Raises InputError with the nearest names for one that does not exist."""
    card = find_card(name)
    if as_json:
        typer.echo(json.dumps(method_facts(card), indent=1, ensure_ascii=False))
        return
    console = Console()
    console.print(f"[bold]{escape(card.name)}[/bold]  unboxed.{card.family}.{card.key}", highlight=False)
    console.print(escape(card.shows), f"It does not show: {escape(card.does_not_show)}", sep="\n", highlight=False)
    for title, text in card_notes(card).items():
        console.print(f"{title}: {escape(text)}", highlight=False)
    table = Table("setting", "kind", "default", "range", "unit", "meaning", box=None, pad_edge=False)
    for setting in card.settings.values():
        table.add_row(
            setting.name,
            setting.kind,
            escape(_setting_default_text(setting)),
            escape(setting.range),
            setting.unit,
            escape(setting.help),
        )
    console.print(table)
    console.print(escape(example_line(card)), highlight=False, style="dim", soft_wrap=True)


def card_notes(card: Card) -> dict[str, str]:
    """{title: text} of what a card and its method's docstring say besides the settings; without empty ones."""
    notes = {
        "Also known as": ", ".join(card.aliases),
        "Source": card.source,
        "Needs": "; ".join(DESCRIPTION_BY_NEED[need] for need in card.needs),
        "Takes texts": "yes" if card.texts else "",
        "Refuses": "; ".join(_raises_entries_of_docstring(card)),
        "Gives": DESCRIPTION_BY_RETURN_KIND[card.returns],
        "Keeps exactly": "; ".join(f"{axiom} ({DESCRIPTION_BY_AXIOM[axiom]})" for axiom in card.axioms),
        "Norms": ", ".join(card.norms),
        "Patents": card.patents,
        "Model runs per input": f"about {card.n_model_runs():,.0f}",
        "Contracts that do not apply": "; ".join(f"{name} ({reason})" for name, reason in card.exempt.items()),
    }
    return {title: text for title, text in notes.items() if text}


def _raises_entries_of_docstring(card: Card) -> list[str]:
    """What the method's docstring says about its errors: "LayerError where the layer has no positions"."""
    entries = re.split(r"\n(?=\S)", docstring_section(card, "Raises"))
    return [" ".join(entry.replace(":", "", 1).split()).rstrip(".") for entry in entries if ":" in entry]


def docstring_section(card: Card, title: str) -> str:
    """The text of a section of the method's docstring, such as "Example"; empty where it has none."""
    doc = f"{inspect.getdoc(card.method) or ''}\n"
    section = re.search(rf"^{title}:\n((?:    .*\n|\n)+)", doc, re.MULTILINE)
    return inspect.cleandoc(section.group(1)) if section else ""


def _setting_default_text(setting: Setting) -> str:
    return "required" if setting.is_required else str(setting.default)


def method_facts(card: Card) -> dict[str, Any]:
    """A card as plain values."""
    return {
        "name": card.key,
        "title": card.name,
        "family": card.family,
        "source": card.source,
        "shows": card.shows,
        "does_not_show": card.does_not_show,
        "needs": list(card.needs),
        "texts": card.texts,
        "returns": card.returns,
        "axioms": list(card.axioms),
        "norms": list(card.norms),
        "exempt": dict(card.exempt),
        "runs": card.n_model_runs(),
        "patents": card.patents,
        "settings": [setting_facts(s) for s in card.settings.values()],
    }


def setting_facts(setting: Setting) -> dict[str, Any]:
    """A setting as plain values; a default that JSON does not have is written as text."""
    default = None if setting.is_required else setting.default
    return {
        "name": setting.name, "option": option_name(setting.name), "kind": setting.kind,
        "required": setting.is_required,
        "default": default if isinstance(default, (bool, int, float, str, type(None))) else repr(default),
        "optional": setting.optional, "choices": list(setting.choices), **setting.bounds, "unit": setting.unit,
        "help": setting.help,
    }  # fmt: skip
