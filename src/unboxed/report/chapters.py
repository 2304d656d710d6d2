"""The chapters of the page: a section names its own, and they stand in the order of their sections."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chapter:
    """One question of the page, which its sections answer: the heading, and the name in the table of contents."""

    title: str
    name: str
    slug: str


MISTAKES = Chapter("Where is it wrong or unsure, and why?", "Mistakes", "chapter-mistakes")
PICTURES = Chapter("What is it looking for?", "What it looks for", "chapter-looks")
FOOLED = Chapter("What fools it?", "What fools it", "chapter-fooled")
BELIEF = Chapter("Can you believe its explanations?", "What to believe", "chapter-believe")
KNOWLEDGE = Chapter("What does it know?", "What it knows", "chapter-knows")
TRAINING = Chapter("Who taught it that?", "Who taught it", "chapter-taught")
ABOUT = Chapter("How was this page made?", "How this was made", "chapter-about")
MORE = Chapter("More about it", "More", "chapter-more")  # of sections that name no chapter
