"""Words: the published association tests, analogies, bias before and after debiasing, and how long it all takes.

The real vectors are not part of the repository: without them (UNBOXED_REAL_DATA) the synthetic ones alone are measured.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

import unboxed as ub
from harness import seconds, write

DATA = Path(os.environ.get("UNBOXED_REAL_DATA", Path(__file__).parents[2] / "shared" / "data")) / "words"
N_WORDS, DIMENSIONS, MAX_SECONDS = 50_000, 300, 5.0
EXPECTED = {"WEAT 1": 1.539, "WEAT 2": 1.628, "WEAT 6": 1.890, "WEAT 7": 0.966, "WEAT 8": 1.244, "WEAT 9": 1.297}
SOFT_WEIGHTS = (0.2, 100.0, 10_000.0)


def synthetic() -> ub.language.WordVectors:
    """All published words, and random ones; random vectors."""
    published = ub.language.published_tests().values()
    words = dict.fromkeys(w for t in published for s in (t.targets, t.attributes) for ws in s.values() for w in ws)
    words |= dict.fromkeys(w for pair in ub.language.gender_words().defining for w in pair)
    names = [*words, *(f"word{i}" for i in range(N_WORDS - len(words)))]
    vectors = torch.randn(N_WORDS, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    return ub.language.WordVectors(names, vectors, "synthetic")


def speed() -> dict[str, Any]:
    vectors = synthetic()
    words = ub.language.BiasWords(ub.language.gender_words().defining)
    return {
        "words": N_WORDS,
        "dimensions": DIMENSIONS,
        "seconds of all association tests": seconds(lambda: ub.language.run_tests(vectors)),
        "seconds of hard debiasing with what remains": seconds(lambda: ub.language.hard_debias(vectors, words)),
    }


def tests() -> dict[str, Any]:
    results = ub.language.run_tests(ub.language.load_vectors(DATA / "weat_w2v.txt"))
    return {
        r.name: {"targets": r.targets, "attributes": r.attributes, "effect size": r.effect_size, "p": r.p_value,
                 "exact": r.exact, "null band": r.null_band, "missing": r.missing, "expected": EXPECTED.get(r.name)}
        for r in results
    } | {"not made": dict(results.skipped)}  # fmt: skip


def bias() -> dict[str, Any]:
    glove = ub.language.load_vectors(DATA / "glove.6B.50d.top2446.txt")
    direction = ub.language.bias_direction(glove)
    debiased = [ub.language.hard_debias(glove), *(ub.language.soft_debias(glove, weight=w) for w in SOFT_WEIGHTS)]
    return {
        "vectors": glove.name,
        "king - man + woman": glove.analogy("man", "king", "woman", 1)[0],
        "his - he + she": glove.analogy("he", "his", "she", 1)[0],
        "pairs": len(direction.sets),
        "first component": float(direction.explained_variance[0]),
        "neutral words": debiased[0].bias.n_words,
        "debiasing": {
            d.method: {name: dict(zip(("before", "after", "by chance"), v, strict=True)) for name, *v in d.bias.rows()}
            for d in debiased
        },
        "neighbors preserved by the map of 1,000 words": ub.language.word_map(glove).neighbors_preserved,
    }


def main() -> None:
    torch.set_num_threads(1)
    figures = {"speed": speed()}
    if DATA.is_dir():
        figures |= {"weat": tests(), "bias": bias()}
        wrong = {n: t["effect size"] for n, t in figures["weat"].items()
                 if n in EXPECTED and abs(t["effect size"] - EXPECTED[n]) > 0.005}  # fmt: skip
        if wrong or figures["bias"]["debiasing"]["hard debiasing"]["direct bias"]["after"] >= 1e-6:
            raise SystemExit(f"not the published figures: {wrong or 'direct bias'}")
    if figures["speed"]["seconds of all association tests"] > MAX_SECONDS:
        raise SystemExit(f"{figures['speed']} s")
    write("words", figures, packages=("gensim", "scikit-learn"))


if __name__ == "__main__":
    main()
