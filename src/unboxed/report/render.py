"""Blocks to one HTML page: its style and script are in it, and it asks the network for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from .blocks import Block, column_width, max_per_row
from .context import ReportContext
from .words import format_bar_prob, replace_hyphens


@dataclass(frozen=True)
class SectionResult:
    """A section as it came out: its blocks, or in `failure` why there are none (or only some)."""

    title: str
    slug: str
    blocks: Sequence[Block]
    failure: str = ""
    reason_unfit: str = ""

    @property
    def short_title(self) -> str:
        """Its name in the page's bar."""
        return self.slug.replace("-", " ").capitalize()


@cache
def _jinja_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("unboxed.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: replace_hyphens(value) if type(value) is str else value,
    )
    environment.globals |= {
        "column_width": column_width,
        "max_per_row": max_per_row,
        "format_bar_prob": format_bar_prob,
    }
    return environment


def render_page(context: ReportContext, parts: Sequence[SectionResult]) -> str:
    """The whole page."""
    title = f"{type(context.box.model).__name__}{context.data.name_with_prefix(' on ')}"
    return _jinja_environment().get_template("page.html").render(context=context, parts=parts, title=title)
