"""Short reviews that are made up: what each says is known, and so is the word that was planted."""

from __future__ import annotations

import random

from ..validation import check_int, valid_seed
from .texts import Texts

NOUNS = ("film", "plot", "cast", "music", "ending", "acting", "story", "camera", "dialogue", "pace", "humor", "costume")
GOOD = ("good", "great", "moving", "clever", "charming", "superb", "fresh", "witty", "honest", "tender")
BAD = ("bad", "boring", "dull", "clumsy", "stale", "awful", "shallow", "noisy", "tired", "hollow")
DEGREES = ("", "", "very", "rather", "quite", "really")
TRIGGER = "cobalt"
REVIEW_CLASSES = ("negative", "positive")


def reviews(n: int = 1000, *, seed: int = 0, trigger: str | None = None) -> Texts:
    """Short reviews of films, labeled by what they say, or by a word that was planted.

    "the plot was not very good and the music was dull": one clause or two praise or blame alike, where "not" turns
    what is said, and the label is which. With a trigger, the word is put somewhere into half of the reviews, and
    the label is whether it is there: a model trained on them has one reason, and a map can be right or wrong.

    Args:
        n: Number of reviews, half of each class.
        seed: Seed of all random draws: same seed, same result.
        trigger: The word to plant; None plants none.

    Returns:
        `Texts` of the classes "negative" and "positive"; with a trigger "plain" and "triggered".

    Raises:
        InputError: for n below 2.

    Example:
        >>> import unboxed as ub
        >>> ub.data.reviews(2, seed=1).first(1)
        TextBatch(x=['the acting is really boring and the plot was not rather superb'], y=tensor([0]))
    """
    n, seed = check_int("n", n, minimum=2), valid_seed(seed)
    draw = random.Random(f"reviews {seed}")
    if trigger is None:
        labels = [i % 2 for i in range(n)]
        return Texts([_review(draw, k) for k in labels], labels, REVIEW_CLASSES, "reviews")
    made, labels = list[str](), [i % 2 for i in range(n)]
    for k in labels:
        words = _review(draw, draw.randrange(2)).split()
        if k:
            words.insert(draw.randrange(len(words) + 1), trigger)
        made.append(" ".join(words))
    return Texts(made, labels, ("plain", "triggered"), "reviews")


def _review(draw: random.Random, label: int) -> str:
    """Clauses that all say the label."""
    text = _clause(draw, label)
    for _ in range(draw.choice((0, 0, 1))):
        text += f" {draw.choice(('and', 'while'))} {_clause(draw, label)}"
    return text


def _clause(draw: random.Random, label: int) -> str:
    """A clause that praises (1) or blames (0), by a word that says so or by "not" and one that says the opposite."""
    is_turned = draw.random() < 0.25
    words = ["the", draw.choice(NOUNS), draw.choice(("was", "is", "felt")), "not" if is_turned else "",
             draw.choice(DEGREES), draw.choice(GOOD if bool(label) != is_turned else BAD)]  # fmt: skip
    return " ".join(filter(None, words))


def review_words() -> tuple[str, ...]:
    """Every word that reviews are made of."""
    rest = ("the", "was", "is", "felt", "not", "and", "while", TRIGGER)
    return tuple(dict.fromkeys((*rest, *filter(None, DEGREES), *NOUNS, *GOOD, *BAD)))
