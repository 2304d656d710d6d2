"""A small embedding that is trained here, on sentences with a planted bias."""

from __future__ import annotations

from functools import cache
from random import Random

import torch

from unboxed.language import BiasWords, WordVectors

FEMALE, MALE = ["she", "woman", "girl", "mother", "sister"], ["he", "man", "boy", "father", "brother"]
CARE = [f"care{i}" for i in range(20)]  # occupations of which sentences say "she" nine times of ten
CRAFT = [f"craft{i}" for i in range(20)]  # and "he"
OTHER = [f"thing{i}" for i in range(40)]
CONTEXTS = {"care": ["helps", "heals", "feeds"], "craft": ["builds", "drills", "welds"]}
GENDER = BiasWords(tuple(zip(FEMALE, MALE, strict=True)))
N_SENTENCES, DIMENSIONS, P_BIASED = 8_000, 12, 0.9


def sentences(seed: int = 0) -> list[list[str]]:
    draw = Random(seed)
    corpus = []
    for _ in range(N_SENTENCES):
        kind, jobs = draw.choice([("care", CARE), ("craft", CRAFT)])
        is_female = draw.random() < (P_BIASED if kind == "care" else 1 - P_BIASED)
        person = draw.choice(FEMALE if is_female else MALE)
        job, thing, possessive = draw.choice(jobs), draw.choice(OTHER), "her" if is_female else "his"
        corpus += [[person, job, possessive], [job, draw.choice(CONTEXTS[kind])], [thing, draw.choice(OTHER), "is"]]
        corpus.append([person, "walks", possessive])
    return corpus


@cache
def trained() -> WordVectors:
    """Singular vectors of the positive pointwise mutual information of words in one sentence (Levy & Goldberg 2014)."""
    corpus = sentences()
    words = list(dict.fromkeys(w for s in corpus for w in s))
    index = {w: i for i, w in enumerate(words)}
    counts = torch.zeros(len(words), len(words), dtype=torch.float64)
    rows = torch.tensor([(index[a], index[b]) for s in corpus for a in s for b in s if a != b])
    counts.index_put_((rows[:, 0], rows[:, 1]), torch.ones(len(rows), dtype=torch.float64), accumulate=True)
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    ppmi = (counts / expected).clamp_min(1).log()
    u, s, _ = torch.linalg.svd(ppmi)
    return WordVectors(words, (u[:, :DIMENSIONS] * s[:DIMENSIONS].sqrt()).float(), "planted")
