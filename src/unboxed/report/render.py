"""Blocks to one HTML page: its style and script are in it, and it asks the network for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..plots.text import hyphens_to_minus_signs
from .blocks import Block, Figure, column_width, figures_per_row, longest_caption_word_length, n_phone_columns
from .chapters import Chapter
from .followed import FollowedExample
from .pictures import PageImageStore
from .words import format_bar_prob


@dataclass(frozen=True)
class RenderedSection:
    """A section as HTML, or in `failure` why there is none (or only a part)."""

    title: str
    slug: str
    html: str = ""
    answer: str = ""  # in one sentence
    failure: str = ""
    not_applicable: str = ""  # why it is not for this model
    chapter: Chapter | None = None
    headline: Sequence[str] = ()  # sentences for the top of the page
    best: str = ""  # HTML that is seen before the section is opened
    followed: Sequence[str] = ()  # HTML: each followed example in this section, "" where it is not shown

    @property
    def has_choice(self) -> bool:
        """Whether what is seen of it depends on the example that a reader follows."""
        return 'class="per-example"' in self.best

    @property
    def n_followed_figures(self) -> int:
        """How many figures stand side by side in it of a followed example."""
        return max((html.count("<figure") for html in self.followed), default=0)

    @property
    def short_title(self) -> str:
        """Its name in the page's bar."""
        return self.slug.replace("-", " ").capitalize()


@dataclass(frozen=True)
class RenderedChapter:
    """The sections of one chapter; None is that of pages without chapters."""

    chapter: Chapter | None
    sections: Sequence[RenderedSection]

    @property
    def headline(self) -> list[str]:
        """Its sentences at the top of the page."""
        return [sentence for section in self.sections for sentence in section.headline]

    @property
    def lead(self) -> RenderedSection:
        """The section whose answer stands below the heading: the first that has one."""
        return next((s for s in self.sections if s.answer), self.sections[0])


def group_into_chapters(sections: Sequence[RenderedSection]) -> list[RenderedChapter]:
    """The chapters in the order of their first sections."""
    by_chapter: dict[Chapter | None, list[RenderedSection]] = {}
    for section in sections:
        by_chapter.setdefault(section.chapter, []).append(section)
    return [RenderedChapter(chapter, members) for chapter, members in by_chapter.items()]


def not_applicable_lines(sections: Sequence[RenderedSection]) -> list[str]:
    """Which sections are not for this model, and why: one line for all of the same reason."""
    by_reason: dict[str, list[str]] = {}
    for section in sections:
        if section.not_applicable:
            by_reason.setdefault(section.not_applicable, []).append(section.short_title)
    several = ("This section needs", "These sections need")
    return [
        f"{', '.join(titles)}: left out. {reason.replace(*several) if len(titles) > 1 else reason}"
        for reason, titles in by_reason.items()
    ]


@cache
def _jinja_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("unboxed.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: hyphens_to_minus_signs(value) if type(value) is str else value,
    )
    environment.globals |= {
        "column_width": column_width,
        "figures_per_row": figures_per_row,
        "longest_caption_word_length": longest_caption_word_length,
        "n_phone_columns": n_phone_columns,
        "format_bar_prob": format_bar_prob,
    }
    environment.filters["encoded"] = lambda picture, pictures: pictures.encode(picture)
    return environment


def render_blocks(blocks: Sequence[Block], pictures: PageImageStore) -> str:
    """The blocks as HTML; their images are encoded here."""
    macros = _jinja_environment().get_template("blocks.html").make_module({"pictures": pictures})
    return str(macros.blocks(blocks))  # type: ignore[attr-defined]


def render_figures(figures: Sequence[Figure], pictures: PageImageStore) -> str:
    """A grid of figures as HTML, "" for none."""
    macros = _jinja_environment().get_template("blocks.html").make_module({"pictures": pictures})
    return str(macros.figures(figures)) if figures else ""  # type: ignore[attr-defined]


def render_page(
    subject: str,
    title: str,
    headline: Sequence[str],
    cover: str,
    sections: Sequence[RenderedSection],
    followed: Sequence[FollowedExample] = (),
    progress: str = "",
) -> str:
    """The whole page: `subject` names the model and the data, `cover` is the HTML beside the headline.

    `followed` are the examples that can be followed through the sections; `progress` says that the page is being made.
    """
    shown = [s for s in sections if not s.not_applicable]
    return _jinja_environment().get_template("page.html").render(
        subject=subject, title=title or subject, headline=headline, cover=cover, sections=shown,
        chapters=group_into_chapters(shown), left_out=not_applicable_lines(sections), followed=followed,
        progress=progress,
    )  # fmt: skip
