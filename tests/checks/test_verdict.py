"""Verdicts: planted methods get the grade they deserve, and a cached verdict is not computed again."""

from __future__ import annotations

import importlib
import json
import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from contracts.common import make_case
from contracts.trace import changes, snapshot
from unboxed import rng
from unboxed.attribution import grad_cam_plus_plus, gradient, gradient_x_input, guided_backprop
from unboxed.checks.fill_agreement import fill_agreement, fill_dependence_sentence
from unboxed.checks.ranking import MethodRanking, attribution_cards, candidates, rank_methods
from unboxed.checks.verdict import GRADES, Verdict, method_display_name, verdict
from unboxed.checks.verdict_cache import VerdictCache, package_code_digest
from unboxed.engine.box_fingerprint import box_fingerprint
from unboxed.engine.randomized import randomize_all_layers
from unboxed.errors import InputError, RuleError


@cache
def digits() -> tuple[ub.Box, Tensor]:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x, _ = ub.data.digits("test").tensors()
    return box, x[::40]


@cache
def of_gradient() -> Verdict:
    """What the digits' model's gradient gets: many tests read it."""
    return verdict(*digits(), gradient)


def edges(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """An edge detector, whatever the model."""
    return (x - x.roll(1, -1)).abs() + (x - x.roll(1, -2)).abs()


def noise(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """A different map for each model, that says nothing about any."""
    return rng.normal(x, int.from_bytes(box_fingerprint(box)[:4], "big"))


def blank(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    return torch.zeros_like(x)


def signs_of_ink(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """Where the input has ink, with the model's signs: what gradient times input does at its worst."""
    return x * gradient(box, x, target).sign()


def refuses(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    raise RuleError("no ReLU lies between")


def edges_when_sure(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    """Edges wherever the model is sure, faint noise elsewhere."""
    sure = (box.probs(x).amax(1) > 0.9).view(-1, 1, 1, 1)
    return torch.where(sure, edges(box, x), 1e-6 * rng.uniform(x, 0))


def another_examples(box: ub.Box, x: Tensor, target: Any = None) -> Tensor:
    return gradient_x_input(box, x, target).detach().roll(1, 0)


def test_the_gradient_passes() -> None:
    found = of_gradient()
    assert found.grade == "pass"
    assert found.method == "Gradient"
    assert abs(found.figures["randomization"]) < 0.3
    assert found.figures["removal"] > 0.3
    assert "changes when the model's upper half is randomized" in found.sentence


@pytest.mark.parametrize(
    ("method", "grade", "said"),
    [
        (grad_cam_plus_plus, "fail", "map is nearly the same"),
        (edges, "fail", "map is nearly the same"),
        (blank, "fail", "the same everywhere"),
        (signs_of_ink, "fail", "Edges and brightness of the input"),
        (edges_when_sure, "fail", "the same for another class"),
        (refuses, "not applicable", "No ReLU lies between"),
    ],
)
def test_planted_methods_get_their_grade(method: Any, grade: str, said: str) -> None:
    found = verdict(*digits(), method)
    assert found.grade == grade, found
    assert said in found.sentence


@pytest.mark.parametrize("method", [noise, another_examples])
def test_what_has_nothing_to_say_does_not_pass(method: Any) -> None:
    assert verdict(*digits(), method).grade in ("fail", "inconclusive")


def test_a_model_that_has_learned_nothing_fails_all() -> None:
    box, x = digits()
    untrained = randomize_all_layers(box, 5)
    for method in (gradient, gradient_x_input, ub.attribution.lrp):
        found = verdict(untrained, x, method)
        assert (found.grade, found.reason) == ("fail", "the model has learned nothing")


def test_one_example_decides_only_what_is_clear() -> None:
    box, x = digits()
    assert verdict(box, x[:1], edges).grade == "fail"
    grades = {verdict(box, x[i : i + 1], gradient).grade for i in range(3)}
    assert not {"pass", "fail"} <= grades


def test_what_is_undecided_says_what_would_decide_it() -> None:
    box, x = digits()
    found = verdict(box, x[:3], ub.attribution.grad_cam)
    undecided = [t for t in found.tests if t.grade == "inconclusive"]
    assert undecided
    assert all("would decide" in t.sentence or "too near" in t.sentence for t in undecided)
    assert all(t.low <= t.bound <= t.high for t in undecided)


def test_a_class_that_is_not_predicted_can_be_explained() -> None:
    """Log-odds do not vanish where the probability does."""
    box, x = digits()
    found = verdict(box, x, gradient, (box.predict(x) + 1) % 10)
    assert found.grade in GRADES
    assert found.n_examples == len(x)


def test_more_draws_only_for_what_is_undecided() -> None:
    box, x = digits()
    tests = {t.name: t for t in of_gradient().tests}
    assert tests["randomization"].n_draws == 2
    limited = verdict(box, x, gradient, max_draws=1)
    assert {t.n_draws for t in limited.tests if t.name != "removal"} == {1}


def test_its_cost_is_counted() -> None:
    box, x = digits()
    n_maps = []

    def counted(box: ub.Box, x: Tensor, target: Any) -> Any:
        n_maps.append(len(x))
        return gradient(box, x, target)

    found = verdict(box, x, counted)
    assert found.n_maps == sum(n_maps)


def test_it_prints_its_tests() -> None:
    found = of_gradient()
    lines = str(found).splitlines()
    assert lines[0].startswith("Gradient: passes (depends on the model; marks what matters). It changes when")
    assert lines[1] == "  tests, with 90% intervals:"
    assert [line.split()[0] for line in lines[2:-1]] == [t.name.split()[0] for t in found.tests]
    assert lines[-1].startswith("  relevance gain by fill: blurred 0.")
    assert max(map(len, lines[1:])) < 100


def test_a_verdict_is_drawn() -> None:
    found = of_gradient()
    pictures = ub.checks.explain_verdict(found)
    assert list(pictures) == ["tests", "maps", "removal"]
    assert all(picture.width > 100 for picture in pictures.values())
    read = VerdictCache(json.dumps({"key": found.to_dict()}))._verdicts["key"]
    assert list(ub.checks.explain_verdict(read)) == ["tests"]
    assert ub.checks.explain_verdict(verdict(*digits(), refuses)) == {}


def test_to_dict_is_json() -> None:
    found = of_gradient()
    again = json.loads(json.dumps(found.to_dict()))
    assert again["grade"] == "pass"
    assert [t["name"] for t in again["tests"]] == [t.name for t in found.tests]


def test_a_model_that_stores_its_activations_can_be_judged() -> None:
    class Keeps(awkward.PlainCNN):
        def forward(self, x: Tensor) -> Tensor:
            self.kept = [h := self.first_block(x)]
            return self.fc(self.second_block(h).flatten(1))

    torch.manual_seed(0)
    box = ub.Box(Keeps(), awkward.GRAY_INPUTS)
    assert verdict(box, awkward.get_model("plain").images(), gradient).grade != "not applicable"


def test_a_map_is_no_method() -> None:
    with pytest.raises(InputError, match="function"):
        verdict(*digits(), torch.zeros(3))


def test_leaves_no_trace() -> None:
    c = make_case("batchnorm_in_train_mode")
    before = snapshot(c.box.model)
    verdict(c.box, c.x, gradient)
    assert changes(before, snapshot(c.box.model)) == []


@pytest.mark.parametrize(
    "model",
    [
        "plain",
        "double",
        "bfloat16",
        "transformer",
        "weight_normed",
        "batchnorm_on_batch_statistics",
        "lstm",
        "parameterless",
    ],
)
def test_awkward_models(model: str) -> None:
    c = make_case(model)
    found = verdict(c.box, c.x, gradient)
    assert found.grade in GRADES
    if model != "parameterless":  # which has nothing to randomize
        assert found.figures["randomization"] == found.figures["randomization"]


@pytest.mark.parametrize(("outputs", "target"), [("regression", None), ("multilabel", 1), ("multilabel", "unit")])
def test_other_outputs_and_targets(outputs: Any, target: Any) -> None:
    entry = awkward.get_model("plain")
    box = ub.Box(entry.model, entry.inputs, outputs=outputs)
    found = verdict(box, entry.images(4), gradient, ub.channel("conv2", 0) if target == "unit" else target)
    assert found.figures["randomization"] == found.figures["randomization"]
    assert found.grade in GRADES


def test_maps_of_outputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).eval()
    box, x = ub.Box(model, ub.Pixels((1, 12, 12)), outputs="logits"), torch.rand(4, 1, 12, 12)
    for target in (None, 1):
        assert verdict(box, x, gradient, target).grade in GRADES


def test_learned_is_asked_of_the_output_of_the_target() -> None:
    """The same model with its outputs in another order gets the same answer."""
    torch.manual_seed(0)
    figures = []
    for order in ([0, 1], [1, 0]):
        model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
        with torch.no_grad():
            weight = torch.stack([torch.full((16,), 20.0), torch.zeros(16)])
            model[1].weight.copy_(weight[order])
            model[1].bias.zero_()
        box = ub.Box(model, ub.Pixels((1, 4, 4)), outputs="multilabel")
        x = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        figures.append(verdict(box, x, gradient, order.index(0)).figures["learned"])
    assert figures[0] == pytest.approx(figures[1], abs=0.25)
    assert figures[0] > 0.5


def test_a_map_that_was_given_must_fit_and_costs_nothing() -> None:
    box, x = digits()
    known = gradient(box, x, box.predict(x))
    assert verdict(box, x, gradient, map_=known).n_maps == of_gradient().n_maps - len(x)
    for wrong in (known[:2], known[..., :-1], known[:, 0], known.numpy()):
        with pytest.raises(InputError):
            verdict(box, x, gradient, map_=wrong)


def test_tables_and_several_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    box = ub.Box(model, ub.Features(("a", "b", "c", "d")), outputs="logits")
    assert verdict(box, torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), gradient).grade in GRADES


def test_names() -> None:
    assert method_display_name(partial(partial(gradient), batch_size=2)) == "Gradient"
    assert method_display_name(edges) == "edges"


# ---- ranking ---------------------------------------------------------------------------------------------------------


def test_candidates_are_the_methods_that_explain_a_score() -> None:
    box, _ = digits()
    found = candidates(box)
    assert {"gradient", "guided_backprop", "deconvnet"} <= set(found) <= set(attribution_cards())


def test_ranked_by_grade() -> None:
    box, x = digits()
    methods = {"edges": edges, "refuses": refuses, "signs": signs_of_ink, "gradient": gradient}
    found = rank_methods(box, x, methods)
    assert next(iter(found)) == "gradient"
    assert list(found)[-1] == "refuses"


def judged(name: str, **gains: float) -> Verdict:
    return Verdict(name, "pass", "", "", gain_by_fill=gains)


def test_an_order_that_depends_on_the_fill_is_said() -> None:
    ranking = MethodRanking(a=judged("A", blurred=0.3, nearest=0.1), b=judged("B", blurred=0.2, nearest=0.2))
    assert ranking.method_orders_by_fill == {"blurred": ["a", "b"], "nearest": ["b", "a"]}
    assert fill_agreement(ranking) == (-1.0, ("blurred", "nearest"))
    assert "depends on what removed parts are filled with (Kendall's tau -1.00)" in str(ranking)
    assert "A leads with 'blurred', B with 'nearest'" in str(ranking)
    agreeing = MethodRanking(a=judged("A", blurred=0.3, nearest=0.4), b=judged("B", blurred=0.2, nearest=0.2))
    assert "All fills give the same order" in str(agreeing)


def test_nothing_is_said_of_fills_that_were_not_compared() -> None:
    alone, unknown = judged("A", blurred=0.3, nearest=0.1), judged("B", blurred=math.nan, nearest=0.2)
    for verdicts in ({}, {"a": alone}, {"a": alone, "b": unknown}, {"a": judged("A", mean=0.1), "b": judged("B")}):
        assert fill_dependence_sentence(verdicts) == ""


def test_the_gain_by_fill_is_part_of_a_verdict() -> None:
    found = of_gradient()
    assert list(found.gain_by_fill) == ["blurred", "surroundings", "nearest", "other examples"]
    assert "relevance gain by fill: blurred" in str(found)
    overall = found.figures["removal"]
    assert sum(found.gain_by_fill.values()) / 4 == pytest.approx(overall, abs=1e-4)


def test_a_model_trained_on_shuffled_labels_takes_part() -> None:
    box, x = digits()
    assert "shuffled labels" not in of_gradient().figures
    same = verdict(box, x, gradient, shuffled_box=box)
    assert (same.grade, same.reason) == ("fail", "same map for shuffled labels")
    other = verdict(box, x, gradient, shuffled_box=ub.Box(*ub.zoo.load("digits-cnn", weights=None)))
    assert other.figures["shuffled labels"] < 0.8
    assert other.grade == of_gradient().grade
    with pytest.raises(ub.errors.InputError, match="same inputs and outputs"):
        verdict(box, x, gradient, shuffled_box=ub.Box(torch.nn.Flatten(), ub.Pixels((1, 2, 2)), outputs="logits"))


# ---- the cache -----------------------------------------------------------------------------------------------------


class Counted:
    """Counts the verdicts that are asked for; each is the same, which is what a cache may not see."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        monkeypatch.setattr("unboxed.checks.verdict_cache.verdict", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Verdict:
        self.asked += 1
        return of_gradient()


def test_a_verdict_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, (box, x) = Counted(monkeypatch), digits()
    first = VerdictCache()
    found = first.verdict(box, x, gradient)
    assert first.verdict(box, x, gradient) == found
    second = VerdictCache(first.to_json())
    assert second.verdict(box, x, gradient) == found
    assert counted.asked == 1
    assert json.loads(second.to_json())


def test_other_arguments_are_other_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, c = Counted(monkeypatch), make_case("plain")
    kept = VerdictCache()
    kept.verdict(c.box, c.x, gradient)
    other = make_case("plain")
    with torch.no_grad():
        other.box.model.fc.weight[0, 0] += 1e-3
    for box, x, method, more in [
        (c.box, c.x[:2], gradient, {}),
        (c.box, c.x, guided_backprop, {}),
        (c.box, c.x, partial(gradient, batch_size=1), {}),
        (c.box, c.x, gradient, {"target": 1}),
        (c.box, c.x, gradient, {"target": torch.tensor([1, 1, 2])}),
        (c.box, c.x, gradient, {"seed": 1}),
        (other.box, c.x, gradient, {}),
    ]:
        before = counted.asked
        kept.verdict(box, x, method, **more)
        assert counted.asked == before + 1, (method, more)


def test_a_method_whose_code_changed_is_judged_again(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, c = Counted(monkeypatch), make_case("plain")
    kept = VerdictCache()
    kept.verdict(c.box, c.x, edges)
    kept.verdict(c.box, c.x, edges)
    assert counted.asked == 1
    monkeypatch.setattr(edges, "__code__", (lambda box, x, target=None: x).__code__)
    kept.verdict(c.box, c.x, edges)
    assert counted.asked == 2


def test_the_code_of_a_package_counts_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of a package that is installed is known by its name: another version of it is another method."""
    package = tmp_path / "a_plugin_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("from .helper import SCALE\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    digests = []
    for scale in (1, 1, 2):
        (package / "helper.py").write_text(f"SCALE = {scale}\n")
        importlib.import_module(package.name)
        digests.append(package_code_digest.__wrapped__(package.name))
    assert digests[0] == digests[1] != digests[2]
    assert package_code_digest("unboxed") == package_code_digest()


def test_lambdas_are_always_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, c = Counted(monkeypatch), make_case("plain")
    kept = VerdictCache()
    for method in (lambda box, x, t: x, partial(gradient, batch_size=torch.tensor(1))):
        for _ in range(2):
            kept.verdict(c.box, c.x, method, ub.logit(1))
    assert counted.asked == 4
    assert json.loads(kept.to_json()) == {}


def test_what_cannot_be_read_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    counted, c = Counted(monkeypatch), make_case("plain")
    texts: list[Any] = [b"", b"{", b"[]", b"null", b'{"a": 1}', b'{"a": {"grade": "great"}}', "\u00e4", b"\xff"]
    for n, text in enumerate(texts, 1):
        assert VerdictCache(text).verdict(c.box, c.x, gradient).grade in GRADES, text
        assert counted.asked == n, text


def test_a_fingerprint_sees_weights_and_buffers() -> None:
    c = make_case("batchnorm")
    before = box_fingerprint(c.box)
    assert box_fingerprint(make_case("batchnorm").box) == before
    c.box.model.norm.running_mean.add_(1e-3)
    assert box_fingerprint(c.box) != before


# ---- one image, explained --------------------------------------------------------------------------------------------


def test_explain_ranks_and_maps() -> None:
    from unboxed.explaining import explain

    box, x = digits()
    found = explain(box, x[:1], methods={"edges": edges, "gradient": gradient, "refuses": refuses})
    assert set(found.verdicts) == {"gradient", "edges", "refuses"}
    assert list(found.verdicts)[-1] == "refuses"
    assert set(found.maps) == {"gradient", "edges"}
    assert found.maps["gradient"].shape == (1, 1, 28, 28)
    assert found.target == box.classes[int(box.predict(x[:1]))]
    with pytest.raises(InputError, match="one input"):
        explain(box, x[:2])


def test_explain_keeps_what_it_has_on_ctrl_c() -> None:
    from unboxed.explaining import explain

    def stops(box: ub.Box, x: Tensor, target: Any) -> Tensor:
        raise KeyboardInterrupt

    box, x = digits()
    found = explain(box, x[:1], methods={"gradient": gradient, "stops": stops, "edges": edges})
    assert found.interrupted
    assert list(found.maps) == ["gradient"]


def test_a_fingerprint_distinguishes_inputs_whose_print_is_cut_off() -> None:
    """Of many columns the first are printed; the others count all the same."""
    model = nn.Linear(9, 2)
    names, std = tuple("abcdefghi"), torch.arange(1.0, 10)
    boxes = [
        ub.Box(model, ub.Features(names, std=s), outputs="logits")
        for s in (std, std.clone().index_fill_(0, torch.tensor([8]), 5))
    ]
    assert str(boxes[0]) == str(boxes[1])
    assert box_fingerprint(boxes[0]) != box_fingerprint(boxes[1])
    assert box_fingerprint(boxes[0]) == box_fingerprint(ub.Box(model, ub.Features(names, std=std), outputs="logits"))


@pytest.mark.parametrize(("name", "hint"), [("grad_cm", r"ub\.attribution\.grad_cam;"), ("Grad-CAM++", "_plus_plus")])
def test_the_name_of_a_method_instead_of_the_method(name: str, hint: str) -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    with pytest.raises(InputError, match=f"such as .*{hint}.* got '"):
        verdict(box, box.noise(2), name)  # type: ignore[arg-type]
