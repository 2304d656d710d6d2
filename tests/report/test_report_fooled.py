"""What the report says of attacks: which examples, how far, and in which unit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.report import attack_budget, report
from unboxed.report.attack_budget import default_attacks_in_few_steps
from unboxed.report.attack_words import attack_sentence
from unboxed.report.context import ReportContext
from unboxed.report.input_nouns import input_nouns_for

CLASSES = 5


class Ladder(nn.Module):
    """Five classes by the first value: 0 to 4, sure of each in its middle."""

    def forward(self, x: Tensor) -> Tensor:
        return -20 * (x.flatten(1)[:, :1] * CLASSES - 0.5 - torch.arange(CLASSES).to(x)).square()


def steps(n: int) -> tuple[Tensor, Tensor]:
    """n images a class, sorted by class; the last class's labels are wrong."""
    y = torch.arange(CLASSES).repeat_interleave(n)
    x = ((y + 0.5) / CLASSES).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return x, torch.where(y == CLASSES - 1, 0, y)


def written(box: ub.Box, data: Any, out: Path) -> tuple[str, dict[str, Any]]:
    made = report(box, data, out, sections=["overview", "attacks"], quiet=True)
    assert made.failures == {}
    page = " ".join(made.path.read_text(encoding="utf-8").split())
    return page, json.loads((out / "report.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("most", [7, 10, 13])
def test_examples_attacked_are_spread_over_sorted_and_over_alternating_classes(
    most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack_budget, "MAX_ATTACKED_EXAMPLES", most)
    monkeypatch.setattr(attack_budget, "MIN_ATTACKED_EXAMPLES", 1)
    x, y = steps(4)
    box = ub.Box(Ladder(), ub.Pixels((1, 2, 2)), outputs="logits")
    for i, order in enumerate([torch.arange(20), torch.arange(20).view(5, 4).T.flatten()]):
        page, facts = written(box, (x[order], y[order]), tmp_path / str(i))
        attacked = facts["findings"]["attacks"]["attacked"]
        counts = torch.bincount(y[order][attacked], minlength=CLASSES)
        assert len(attacked) == most
        assert int(counts[:-1].min()) >= most * 4 // 20
        top = page[: page.index('<section id="attacks"')]  # what is seen before anything is opened
        assert top.count(f"accuracy on {most} of the 20 examples from") == 2
        assert f"{most} of the 20 examples were attacked, evenly spread over the classes." in page
        n_correct = facts["findings"]["attacks"]["robustness"]["this model"]["clean"]["count"]
        assert f"({n_correct} of these {most} examples; 80.0% of all examples)" in page


def test_where_all_are_attacked_there_is_one_clean_accuracy(tmp_path: Path) -> None:
    page, facts = written(ub.Box(Ladder(), ub.Pixels((1, 2, 2)), outputs="logits"), steps(2), tmp_path)
    assert facts["findings"]["attacks"]["attacked"] == list(range(10))
    assert (
        "All examples were attacked. Clean accuracy 80.0% (8 of these 10 examples); robust accuracy within 0.3" in page
    )


@pytest.mark.parametrize(("cost", "n_steps"), [(1e13, 50), (21 * 16 * 1000 * 7.9, 7), (1.0, 5)])
def test_deepfool_takes_as_many_steps_as_a_model_affords(
    cost: float, n_steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attack_budget, "MAX_DEEPFOOL_COST", cost)
    monkeypatch.setattr(ReportContext, "forward_flops", lambda context, n: 500.0 * n)
    monkeypatch.setattr(ReportContext, "memory_cost_factor", 2.0)
    page, facts = written(ub.Box(Ladder(), ub.Pixels((1, 2, 2)), outputs="logits"), steps(2), tmp_path)
    assert facts["findings"]["attacks"]["deepfool_steps"] == n_steps  # on 10 attacked examples, and 6 with figures
    assert (f"DeepFool took at most {n_steps} steps" in page) == (n_steps < 50)


def test_what_fools_it_is_shown_of_examples_that_were_right_and_clear(tmp_path: Path) -> None:
    x, y = steps(4)
    x[:4] = 0.2 - 1e-4  # class 0, at the edge of class 1
    page, facts = written(ub.Box(Ladder(), ub.Pixels((1, 2, 2)), outputs="logits"), (x, y), tmp_path)
    top = page[page.index('id="chapter-fooled"') : page.index('<section id="attacks"')]
    decided = {e["row"] for i, e in enumerate(facts["findings"]["attacks"]["shown"])
               if i in facts["findings"]["attacks"]["decided"]}  # fmt: skip
    shown = {int(row) for row in re.findall(r"example (\d+)", top)}
    assert shown <= decided
    assert shown.isdisjoint({0, 1, 2, 3, 16, 17, 18, 19})  # those at the edge, and the errors
    variants = top.split('data-example="')[1:]
    assert all(len(re.findall("<b>before: ", v)) == 2 for v in variants)
    assert all(len(re.findall("<b>after: ", v)) == len(re.findall("<b>change<", v)) == 2 for v in variants)
    assert "now right" not in top


def test_an_error_that_becomes_right_is_no_new_error(tmp_path: Path) -> None:
    x, y = steps(4)
    y[16:] = 3  # predicted 4, and the nearest other class is their label
    page, _ = written(ub.Box(Ladder(), ub.Pixels((1, 2, 2)), outputs="logits"), (x, y), tmp_path)
    strip = page[page.index('class="followed"') : page.index('class="chapter"')]
    (step,) = re.findall(r'<li><a href="#attacks">.*?</li>', strip.split('data-example="1"')[0])
    assert "after: 3" in step
    assert "now right" in step
    assert '<figure class="good">' in step


# -- tables ----------------------------------------------------------------------------------------------------------


def table(std: tuple[float, ...]) -> tuple[ub.Box, Tensor]:
    torch.manual_seed(0)
    inputs = ub.Features(("a", "b"), low=(-4000.0, 0.0), mean=(700.0, 0.0), std=std)
    x = torch.stack([700 + 300 * torch.randn(12), torch.tensor([0.0, 3.0, 5.0]).repeat(4)], 1)
    return ub.Box(nn.Sequential(nn.Linear(2, 3)).eval(), inputs, outputs="logits"), x


def test_tables_are_attacked_in_standard_deviations_where_they_have_them(tmp_path: Path) -> None:
    box, x = table((300.0, 7.0))
    y = box.predict(x)
    page, facts = written(box, (x, y), tmp_path)
    scaled = ub.Box(nn.Sequential(nn.Identity(), box.model), ub.Features(("a", "b"), low=(-4700 / 300, 0.0)))
    found = ub.robustness.evaluate(
        scaled,
        (box.inputs.encode(x), y),
        default_attacks_in_few_steps(),
        eps=attack_budget.GRAYSCALE_EPS_VALUES,
        check_masking=False,
    )
    assert facts["findings"]["attacks"]["robustness"]["this model"]["all"] == [
        found.robust_accuracy(e).to_dict() for e in found.eps
    ]
    assert "within 0.3 standard deviations of its column" in page
    assert "changed each value by at most eps standard deviations of its column" in page
    assert "pixel" not in page[page.index('id="chapter-fooled"') :]


def test_other_tables_are_attacked_in_the_ranges_of_their_data(tmp_path: Path) -> None:
    box, x = table(())
    page, _ = written(box, (x, box.predict(x)), tmp_path)
    assert "within 0.3 of its column&#39;s range" in page


def test_columns_of_categories_are_not_moved(tmp_path: Path) -> None:
    box, x = table((300.0, 7.0))
    inputs = ub.Features(("a", "b"), categories={"b": (0.0, 3.0, 5.0)})
    found = ub.adversarial.pgd(ub.Box(box.model, inputs, outputs="logits"), x, box.predict(x), eps=1e4, loss="margin")
    assert torch.equal(found.images[:, 1], x[:, 1])
    assert not torch.equal(found.images[:, 0], x[:, 0])
    written(ub.Box(box.model, inputs, outputs="logits"), (x, box.predict(x)), tmp_path)


def test_inputs_in_words() -> None:
    image, rows = ub.Pixels((1, 2, 2)), ub.Features(("a",))
    assert input_nouns_for(image).unit == "of the pixel range"
    for shape, noun in (((1, 9), "signal"), ((1, 2, 3, 4), "volume")):
        assert input_nouns_for(ub.Pixels(shape).as_image_pixels()).example == noun
    assert input_nouns_for(rows).inputs == "a table of features"
    assert input_nouns_for(ub.Features(("a",), low=0, high=4)).unit == "of its column's range"
    assert input_nouns_for(ub.MultiInput((image, rows))).unit == "of the pixel range or in its column's unit"
    assert input_nouns_for(ub.MultiInput((image, rows, rows))).inputs == "1 image and 2 tables of features"


# -- the sentence ----------------------------------------------------------------------------------------------------


def robustness_of(n_correct: int, n_robust: int, n: int = 4) -> Any:
    """Robustness of n examples at one eps, of which so many are correct, and so many stay correct."""
    x, y = torch.full((n, 1, 1, 1), 0.5), torch.zeros(n, dtype=torch.long)
    y[n_correct:] = 1
    margin = torch.cat([torch.full((n_robust,), 0.4), torch.full((n - n_robust,), 0.1)])
    x = x + margin.view(-1, 1, 1, 1)  # class 0 above 0.5
    box = ub.Box(Half(), ub.Pixels((1, 1, 1)), outputs="logits")
    return ub.robustness.evaluate(box, (x, y), default_attacks_in_few_steps(), eps=[0.2], check_masking=False)


class Half(nn.Module):
    """Class 0 above one half, else class 1."""

    def forward(self, x: Tensor) -> Tensor:
        z = 20 * (x.flatten(1)[:, :1] - 0.5)
        return torch.cat([z, -z], 1)


@pytest.mark.parametrize(
    ("n_correct", "n_robust", "has_labels", "sentence"),
    [
        (4, 4, True, "No attack within 0.2 of the pixel range changes a prediction (4 of 4 stay correct)."),
        (3, 4, True, "No attack within 0.2 of the pixel range changes a correct prediction (3 of 3 stay correct)."),
        (4, 4, False, "No attack within 0.2 of the pixel range changes a prediction (4 of 4 stay the same)."),
        (4, 3, True, "Attacks that change each pixel by at most 0.2 of the pixel range lower the accuracy on all 4 examples from 100% to 75.0%."),  # noqa: E501
        (4, 3, False, "Attacks that change each pixel by at most 0.2 of the pixel range change 25.0% of the predictions for all 4 examples."),  # noqa: E501
    ],
)  # fmt: skip
def test_the_sentence_does_not_contradict_itself(
    n_correct: int, n_robust: int, has_labels: bool, sentence: str
) -> None:
    found = robustness_of(n_correct, n_robust)
    assert attack_sentence(found, input_nouns_for(ub.Pixels((1, 1, 1))), has_labels, 4) == sentence


def test_the_sentence_says_how_many_examples_were_attacked() -> None:
    nouns = input_nouns_for(ub.Pixels((1, 1, 1)))
    assert "the accuracy on 4 of the 1,200 examples from 75.0% to 50.0%." in attack_sentence(
        robustness_of(3, 2), nouns, True, 1200
    )
    assert attack_sentence(robustness_of(4, 4), nouns, True, 9).endswith(
        "(4 of 4 stay correct; 4 of the 9 examples were attacked)."
    )


@pytest.mark.parametrize(("eps", "said"), [((0.05, 0.2, 0.3), 0.2), ((0.05, 0.08), 0.08)])
def test_the_sentence_is_of_the_smallest_eps_that_fools_it(eps: tuple[float, ...], said: float) -> None:
    x, y = torch.full((4, 1, 1, 1), 0.6), torch.zeros(4, dtype=torch.long)  # class 0 above 0.5
    box = ub.Box(Half(), ub.Pixels((1, 1, 1)), outputs="logits")
    found = ub.robustness.evaluate(box, (x, y), default_attacks_in_few_steps(), eps=[*eps], check_masking=False)
    sentence = attack_sentence(found, input_nouns_for(ub.Pixels((1, 1, 1))), True, 4)
    assert f"{said} of the pixel range" in sentence


def test_without_labels_the_page_speaks_of_predictions(tmp_path: Path) -> None:
    page, _ = written(ub.Box(Ladder(), ub.Pixels((1, 2, 2)), outputs="logits"), steps(2)[0], tmp_path)
    section = page[page.index('id="chapter-fooled"') :]
    assert "of the predictions for all 10 examples." in section
    assert "lower the accuracy" not in page
    assert "There are no labels, so every prediction counts as correct" in section
