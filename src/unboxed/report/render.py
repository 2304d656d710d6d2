"""Blocks to one HTML page: its style and script are in it, and it asks the network for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from .blocks import Block, together, width
from .context import Context
from .words import bar, typographic


@dataclass(frozen=True)
class Part:
    """A section as it came out: its blocks, or in `failure` why there are none (or only some)."""

    title: str
    slug: str
    blocks: Sequence[Block]
    failure: str = ""
    unfit: str = ""

    @property
    def short(self) -> str:
        """Its name in the page's bar."""
        return self.slug.replace("-", " ").capitalize()


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("unboxed.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: typographic(value) if type(value) is str else value,
    )
    made.globals |= {"width": width, "together": together, "bar": bar}
    return made


def page(context: Context, parts: Sequence[Part]) -> str:
    """The whole page."""
    title = f"{type(context.box.model).__name__}{context.source.named(' on ')}"
    return _environment().get_template("page.html").render(context=context, parts=parts, title=title)
