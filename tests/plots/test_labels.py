"""Words beside points do not cover one another, and the first ones come first."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

import unboxed as ub
from language.embedding import CARE, CRAFT, FEMALE, GENDER, MALE, trained
from unboxed.errors import InputError
from unboxed.plots.labels import labeled_scatter, place_labels


def test_labels_do_not_overlap_and_stay_inside() -> None:
    positions = np.random.default_rng(0).uniform(0, 300, (200, 2))
    boxes = place_labels(positions, [f"word{i}" for i in range(200)], 300)
    assert 5 < len(boxes) < 200
    assert 0 in boxes
    for (left, upper, right, lower), (left2, upper2, right2, lower2) in combinations(boxes.values(), 2):
        assert right < left2 or right2 < left or lower < upper2 or lower2 < upper
    assert all(min(b) >= 0 and max(b) <= 300 for b in boxes.values())


def test_as_many_words_as_points() -> None:
    with pytest.raises(InputError, match="one word per point, 2; got 1"):
        labeled_scatter([[0.0, 0.0], [1.0, 1.0]], ["sun"])


def test_results_of_words_are_drawn() -> None:
    people = {"female": FEMALE, "male": MALE}
    tests = {"jobs": ub.language.WordTest({"care": CARE, "craft": CRAFT}, people)}
    results = ub.language.run_tests(trained(), tests, n_partitions=200)
    debiased = ub.language.hard_debias(trained(), GENDER)
    drawn = [results, results["jobs"], debiased, debiased.bias, ub.language.word_map(trained())]
    assert [list(ub.plots.figures(r)) for r in drawn] == [["weat"], ["weat"], ["bias"], ["bias"], ["map"]]
    none = ub.language.run_tests(trained(), {"x": ub.language.WordTest({"a": ["u", "v"], "b": ["s", "t"]}, people)})
    assert ub.plots.figures(none) == {}
