"""The report: what it says is what the model does, whatever the model and the data are."""

from __future__ import annotations

import json
import re
import sys
import warnings
from dataclasses import dataclass, replace
from functools import wraps
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from quick_reports import make_reports_quick
from unboxed import Box, Features, Pixels, data
from unboxed.checkpointing import weights_digest
from unboxed.engine.randomized import randomize_all_layers
from unboxed.errors import InputError, UnboxedWarning
from unboxed.report import SECTIONS, Finding, NotApplicable, Report, Section, checks, report
from unboxed.report.blocks import Paragraph
from unboxed.report.context import ReportContext
from unboxed.report.folder import ReportFolder
from unboxed.report.pictures import PageImage, PageImageStore, display_size_pixels, to_file_name
from unboxed.report.survey import evenly_spaced_indices, max_evaluated_examples_for
from unboxed.report.words import format_percent, format_prob

NAMES = ("top left", "top right", "low left", "low right")
QUICK = ["overview", "reproduce"]


class Quadrants(nn.Module):
    """Says which quarter of an 8x8 image is the brightest: its answers are known without running it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1, bias=False)
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(4)
        with torch.no_grad():
            self.conv.weight.fill_(20.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.relu(self.conv(x))).flatten(1)


def quadrants(answers: list[int], brightness: list[float] | None = None) -> Tensor:
    """Images (N, 1, 8, 8) with one bright quarter each, on faint noise."""
    x = 0.1 * torch.rand(len(answers), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for i, k in enumerate(answers):
        top, left = k // 2 * 4, k % 2 * 4
        x[i, :, top : top + 4, left : left + 4] += (brightness or [0.6] * len(answers))[i]
    return x


def box_of(**kwargs: Any) -> Box:
    return Box(Quadrants().eval(), Pixels((1, 8, 8)), **{"classes": NAMES, **kwargs})


ANSWERS = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
LABELS = [0, 1, 2, 3, 0, 1, 2, 3, 3, 3]  # the last two are misclassified: low right as top left, as top right
BRIGHT = [
    0.6,
    0.6,
    0.6,
    0.6,
    0.6,
    0.6,
    0.6,
    0.02,
    0.7,
    0.5,
]  # number 7 has the lowest margin, number 8 is the most confident error


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Page, dict[str, Any]]:
    """One whole report, with a judge."""
    out = tmp_path_factory.mktemp("report") / "out"
    examples = (quadrants(ANSWERS, BRIGHT), torch.tensor(LABELS))
    settings: Any = {"judge": box_of(), "training": examples, "quiet": True, "command": "unboxed report <x>"}
    with pytest.MonkeyPatch.context() as patch:
        make_reports_quick(patch)
        found = report(box_of(), examples, out, **settings)
    return found, Page(found.path), json.loads((out / "report.json").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def _one_verdict_per_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the reports that a test makes itself: the first method is judged, and no other."""
    for budget in ("MAX_TOTAL_VERDICT_FLOPS", "MAX_WELL_KNOWN_VERDICT_FLOPS"):
        monkeypatch.setattr(checks, budget, 0.0)


class Page(HTMLParser):
    """What a page has: its words, images and links."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.draw_text: list[str] = []
        self._in: list[str] = []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.draw_text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in.append(tag)

    def handle_data(self, text: str) -> None:
        if self._in and self._in[-1] not in ("style", "script"):
            self.draw_text.append(text)

    def handle_endtag(self, tag: str) -> None:
        self._in.append("")

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def has(self, *words: str) -> bool:
        return all(word in self.text for word in words)


def quick(box: Box, examples: Any, out: Path, **kwargs: Any) -> tuple[Report, Page, dict[str, Any]]:
    found = report(box, examples, out, quiet=True, **{"sections": QUICK, **kwargs})
    return found, Page(found.path), json.loads((out / "report.json").read_text(encoding="utf-8"))


# -- the whole page ------------------------------------------------------------------------------------------


def test_the_page_opens_with_the_answer(made: Any) -> None:
    found, page, facts = made
    assert found.failures == {} == facts["failures"]
    first = page.source[: page.source.index("</section>")]
    assert "80.0% accuracy" in re.sub(r"\s+", " ", first)
    assert 'Its most confident error: "low right" classified as "top left"' in unescape(first)
    assert facts["title"] == "80.0% accuracy"


def test_the_numbers_are_those_of_the_model(made: Any) -> None:
    facts = made[2]["findings"]["overview"]
    assert facts["accuracy"] == 0.8
    assert facts["mistakes"] == 2
    assert [m["example"] for m in facts["most_confident_errors"]] == [8, 9]
    assert facts["lowest_margin"][0] == 7
    assert facts["confusions"] == [
        {"label": "low right", "prediction": "top left", "times": 1},
        {"label": "low right", "prediction": "top right", "times": 1},
    ]
    assert [layer["path"] for layer in facts["layers"]] == ["conv", "relu", "pool"]


def test_every_section_is_there_and_in_the_bar(made: Any) -> None:
    _, page, _ = made
    ids = {attrs["id"] for attrs in page.all("section") if "id" in attrs}
    targets = {attrs["href"] for attrs in page.all("a") if (attrs.get("href") or "").startswith("#")}
    slugs = {s.slug for s in SECTIONS if "texts" not in s.needs} - {
        "probes",
        "groups",
        "concepts",
        "parts",
        "detectors",
    }  # ten examples are too few
    assert slugs <= ids
    assert {f"#{slug}" for slug in slugs} <= targets


def test_the_page_is_one_file_and_small(made: Any) -> None:
    found, page, _ = made
    assert found.path.stat().st_size < 5_000_000
    assert not re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?\s*(?:https?:)?//""", page.source)
    assert all((img["src"] or "").startswith("data:image/png;base64,") for img in page.all("img"))
    assert all("src" not in script for script in page.all("script"))
    assert [link["href"] for link in page.all("link")] == ["data:,"]


def test_every_figure_says_what_it_is(made: Any) -> None:
    images = made[1].all("img")
    assert len(images) > 40
    assert all(len(img.get("alt") or "") > 8 and img.get("width") and img.get("height") for img in images)


def test_links_lead_to_files_that_are_there(made: Any) -> None:
    found, page, facts = made
    linked = {attrs["href"] for attrs in page.all("a") if not (attrs["href"] or "").startswith("#")}
    assert linked == {name for name in facts["files"] if not name.startswith("pictures/more")}
    assert len(linked) >= 6
    assert {p.name for p in found.path.parent.iterdir()} == {
        "index.html", "report.json", "verdicts.json", "pictures",
    }  # fmt: skip
    assert all((found.path.parent / name).stat().st_size > 100 for name in facts["files"])


def test_each_method_says_what_it_shows_and_what_not(made: Any) -> None:
    from unboxed.activations import filters, maps
    from unboxed.checks.ranking import attribution_cards
    from unboxed.synthesis import class_image, morph

    trusted = attribution_cards()[made[2]["findings"]["gradients"]["method"]].method
    for method in (filters, maps, trusted, class_image, morph):
        assert made[1].has(method.card.name, method.card.shows, method.card.does_not_show)
    assert made[1].text.count("Verdict") == made[1].text.count("Does not show") >= 6


def test_the_judge_has_the_last_word_on_class_images(made: Any) -> None:
    _, page, facts = made
    verdict = facts["findings"]["class-images"]["robust"]
    assert verdict["of"] == 4
    assert page.has(f"The judge recognizes {verdict['recognized']} of 4", f"judge: {verdict['predictions'][0]}")
    assert set(facts["findings"]["class-images"]["differences"]) == set(NAMES)


def test_a_morph_that_the_model_is_less_sure_of_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["unboxed.report.change"], "MORPH_CONFIDENCE", 1 - 1e-12)
    monkeypatch.setattr(sys.modules["unboxed.report.change"], "MAX_MORPH_FLOPS", 0)
    _, page, facts = quick(box_of(), (quadrants(ANSWERS), torch.tensor(LABELS)), tmp_path, sections=["morphs"])
    finding = facts["findings"]["morphs"]
    n = len(finding["outcomes"])
    assert [(o["changed"], o["reached"]) for o in finding["outcomes"]] == [(True, False)] * n
    assert finding["answer"].startswith(f"{n} of {n} examples could be changed step by step into another class (0 of")
    assert "predicted, with less than p" in page.source.replace("\u00a0", " ")
    assert "not reached" not in page.source.replace("\u00a0", " ")


def test_morphs_come_with_frames_and_probabilities_for_the_slider(made: Any) -> None:
    _, page, facts = made
    found = re.findall(r'<script type="application/json">(.*?)</script>', page.source, re.DOTALL)
    morphs = [data for text in found if "frames" in (data := json.loads(text))]
    changes = facts["findings"]["morphs"]["outcomes"]
    assert (len(morphs), len(changes)) == (4, 6)  # the first have sliders, all that a reader can follow are made
    for morph, fact in zip(morphs, changes, strict=False):
        assert len(morph["frames"]) == len(morph["probs"]) == len(morph["steps"]) == len(morph["alts"]) > 1
        assert morph["steps"][-1] == fact["steps"]
        assert max(morph["probs"][-1]) == pytest.approx(fact["p"], abs=1e-4)
        assert fact["changed"]
    assert changes[0]["example"] == 8
    assert changes[0]["target"] == "low right"
    assert page.has("The judge predicts the target class for 6 of 6 results")  # it is the model itself


def test_the_command_seed_and_versions_are_on_the_page(made: Any) -> None:
    _, page, facts = made
    assert page.has("unboxed report <x>", f"torch {torch.__version__}")
    assert facts["findings"]["reproduce"]["seed"] == 0
    assert facts["findings"]["reproduce"]["weights"] == weights_digest(box_of().model)


def test_the_model_is_left_as_it_was_and_the_page_is_the_same_again(tmp_path: Path) -> None:
    box = box_of()
    box.model.train()
    weight, state, threads = box.model.conv.weight.detach().clone(), torch.get_rng_state(), torch.get_num_threads()
    examples = (quadrants(ANSWERS), torch.tensor(LABELS))
    pages = [
        quick(box, examples, tmp_path / f"{i}", sections=["overview", "activations", "gradients"])[1].source
        for i in range(2)
    ]
    assert pages[0] == pages[1]
    assert box.model.training
    assert torch.get_num_threads() == threads
    assert box.model.conv.weight.grad is None
    assert torch.equal(box.model.conv.weight, weight)
    assert torch.equal(torch.get_rng_state(), state)


# -- any model and any data ------------------------------------------------------------------------------------


def test_without_labels_there_is_everything_but_accuracy(tmp_path: Path) -> None:
    found, page, facts = quick(
        box_of(), quadrants([2, 2, 2, 1]), tmp_path, sections=["overview", "gradients", "morphs"]
    )
    assert found.failures == {}
    assert facts["title"] == "Predicts low left most often"
    assert facts["findings"]["overview"]["accuracy"] is None
    assert page.has("No accuracy and no confusion matrix: not every example has a label", "Typical")
    assert "label" not in page.text.replace("not every example has a label", "").replace("Without labels", "")


def test_a_perfect_model_has_no_confusion_matrix(tmp_path: Path) -> None:
    _, page, facts = quick(box_of(), (quadrants([0, 1]), torch.tensor([0, 1])), tmp_path)
    assert facts["title"] == "100% accuracy"
    assert page.has("It makes no error; its least certain prediction is", "Every prediction is correct")


def test_names_are_words_and_never_markup(tmp_path: Path) -> None:
    hostile = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a & b", '"><b>']
    box = box_of(classes=hostile)
    examples = (quadrants(ANSWERS), torch.tensor(LABELS))
    _, page, _ = quick(box, examples, tmp_path, sections=["overview", "morphs", "reproduce"], command="<blink>")
    assert page.has(*hostile[1:], "<script>alert(1)</script>")
    assert not [attrs for _, attrs in page.tags if "onerror" in attrs]
    assert len(page.all("script")) == 1 + 4  # the page's own, and the data of the sliders
    assert not page.all("blink")
    assert all(p.name.replace("-", "").replace(".", "").isalnum() for p in (tmp_path / "pictures").iterdir())


@pytest.mark.parametrize("outputs", ["multilabel", "regression"])
def test_outputs_that_are_no_rivals_have_no_confusion_matrix(outputs: str, tmp_path: Path) -> None:
    examples = (quadrants([0, 1, 2]), torch.rand(3, 5))  # labels of another form are not read
    found, page, facts = quick(
        box_of(outputs=outputs), examples, tmp_path, sections=["overview", "gradients", "morphs"]
    )
    assert found.failures == {}
    assert facts["title"] == "4 outputs"
    assert page.has(f"the outputs don't exclude one another ({outputs})")
    assert page.has("This section needs classes") == (outputs == "regression")


@pytest.mark.usefixtures("quick_reports")
def test_a_table_of_features_is_opened_as_far_as_it_goes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    box = Box(model, Features(("a", "b", "c")))
    found = report(box, (torch.randn(6, 3), torch.arange(6) % 2), tmp_path, quiet=True)
    page = Page(found.path)
    assert found.failures == {}
    assert page.text.count("These sections need a model that takes images; this one takes a table of features.") == 1
    targets = {attrs["href"] for attrs in page.all("a")}
    assert not targets & {f"#{section.slug}" for section in SECTIONS if "pixels" in section.needs}
    assert "#units" in targets
    assert page.has("1 output", "Linear: 2 units")


def test_of_many_classes_the_confused_ones_are_shown(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1000)).eval()
    examples = (torch.rand(30, 1, 8, 8), torch.arange(30) * 33)
    _, page, facts = quick(Box(model, Pixels((1, 8, 8))), examples, tmp_path)
    head = page.source[page.source.index('class="confusion') : page.source.index("</thead>")]
    assert head.count('<th scope="col"') == 1 + 16
    assert page.has("984 more are left out")
    assert len(facts["classes"]) == 1000


@pytest.mark.usefixtures("quick_reports")
@pytest.mark.parametrize("shape", [(1, 5, 9), (2, 12, 12), (3, 44, 32)])
def test_images_of_any_size_and_channels(shape: tuple[int, int, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(shape[0], 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    model = nn.Sequential(*layers).eval()
    examples = (torch.rand(3, *shape), torch.tensor([0, 1, 1]))
    box, sections = Box(model, Pixels(shape), outputs="logits"), ["overview", "activations", "gradients", "morphs"]
    found, page, _ = quick(box, examples, tmp_path, sections=sections)
    assert found.failures == {}
    inputs = [img for img in page.all("img") if "input, example" in (img["alt"] or "")]
    sizes = [(int(img["width"] or 0), int(img["height"] or 0)) for img in inputs]
    assert len(sizes) > 3
    assert all(w * shape[1] == pytest.approx(h * shape[2], rel=0.02) for w, h in sizes)


def test_one_example_is_enough(tmp_path: Path) -> None:
    examples, sections = (quadrants([1]), torch.tensor([1])), ["overview", "activations", "gradients", "morphs"]
    found, page, _ = quick(box_of(), examples, tmp_path, sections=sections)
    assert found.failures == {}
    assert page.has("100% accuracy")


def test_maps_before_the_relu_are_named_so(tmp_path: Path) -> None:
    model = awkward.get_model("relu_logits")
    box = Box(model.model, model.inputs, **model.box_settings)
    found, page, facts = quick(box, model.images(12), tmp_path, sections=["gradients"])
    assert found.failures == {}
    assert facts["findings"]["gradients"]["method"] == "gradient"
    assert page.has("before the clamp")


def test_photos_beyond_the_budget_are_files_next_to_the_page(tmp_path: Path) -> None:
    with ReportFolder(tmp_path) as folder:
        pictures = PageImageStore(folder, budget=0)
        drawn = pictures.encode(PageImage(torch.rand(30, 30, 3).mul(255).byte().numpy(), "noise"))
        assert drawn.src == "pictures/more-1.png"
        folder.publish()
    assert (tmp_path / drawn.src).stat().st_size > 1000


def test_labels_follow_names_where_the_data_count_differently(tmp_path: Path) -> None:
    class Backwards(torch.utils.data.Dataset[Any]):
        classes = NAMES[::-1]
        x = quadrants([0, 1, 2, 3])

        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> tuple[Tensor, int]:
            return self.x[i], 3 - i

    assert quick(box_of(), Backwards(), tmp_path)[2]["findings"]["overview"]["accuracy"] == 1.0


def test_a_broken_image_of_a_folder_is_passed_over_and_listed(tmp_path: Path) -> None:
    from unboxed.plots import colors, save

    for i, k in enumerate([0, 1, 2, 3]):
        save(colors.image_to_rgb(quadrants([k])[0]), tmp_path / "in" / NAMES[k] / f"{i}.png")
    whole = (tmp_path / "in" / NAMES[0] / "0.png").read_bytes()
    (tmp_path / "in" / NAMES[1] / "cut.png").write_bytes(whole[: len(whole) - 30])
    (tmp_path / "in" / NAMES[1] / "notes.txt").write_text("not an image")
    box = box_of()
    images = data.folder(tmp_path / "in", like=box.inputs, classes=box.classes)
    _, page, facts = quick(box, images, tmp_path / "out")
    assert facts["findings"]["overview"]["accuracy"] == 1.0
    assert facts["findings"]["overview"]["examples"] == 4
    assert page.has(
        "1 image is broken and 1 file is not an image", "cut.png", "notes.txt", "Measured on 4 of 5 examples."
    )
    assert not page.has("evenly spread over the data")
    assert facts["headline"][-1] == "Left out: 1 image is broken and 1 file is not an image."


@dataclass(frozen=True, eq=False, kw_only=True)
class CountFinding(Finding):
    n: int


def count(context: ReportContext) -> CountFinding:
    return CountFinding(n=len(context.survey.rows))


def show_count(finding: CountFinding) -> list[Any]:
    return [Paragraph(f"{finding.n} counted")]


COUNT = Section("Count", "count", count, show_count)
"""A section of a user's own."""


# -- sections ------------------------------------------------------------------------------------------------


def test_a_failing_section_says_so_and_the_others_are_written(tmp_path: Path) -> None:
    def fail(context: ReportContext) -> Finding:
        raise RuntimeError("first line <b>\nsecond line")

    sections = ["overview", Section("Bad", "bad", fail, show_count), COUNT]
    found, page, facts = quick(box_of(), quadrants([0, 1]), tmp_path, sections=sections)
    assert found.failures == {"bad": "RuntimeError: first line <b>"} == facts["failures"]
    assert page.has("This section failed. RuntimeError: first line <b>", "The section “Bad” failed", "2 counted")
    assert facts["findings"]["count"]["n"] == 2


def test_where_there_is_nothing_to_find_a_note_says_why(tmp_path: Path) -> None:
    def find(context: ReportContext) -> Finding:
        raise NotApplicable("this model has no wheels")

    found, page, facts = quick(
        box_of(), quadrants([0]), tmp_path, sections=[Section("W", "w", find, show_count), COUNT]
    )
    assert found.failures == {}
    assert page.has("this model has no wheels", "1 counted")
    assert set(facts["findings"]) == {"count"}


def test_what_a_method_warns_of_is_in_its_section(tmp_path: Path) -> None:
    def warn(context: ReportContext) -> CountFinding:
        for _ in range(2):
            warnings.warn("maps of 3 inputs are zero", UnboxedWarning, stacklevel=2)
        return count(context)

    _, page, _ = quick(box_of(), quadrants([0]), tmp_path, sections=["overview", Section("W", "w", warn, show_count)])
    assert page.text.count("Note: maps of 3 inputs are zero.") == 1
    assert page.text.index("Note: maps of 3") < page.text.index("1 counted")


def test_other_warnings_still_reach_the_caller(tmp_path: Path) -> None:
    def warn(context: ReportContext) -> CountFinding:
        warnings.warn("of another kind", DeprecationWarning, stacklevel=2)
        return count(context)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        quick(box_of(), quadrants([0]), tmp_path, sections=[Section("W", "w", warn, show_count)])
    assert [str(w.message) for w in said] == ["of another kind"]


def test_an_interrupt_keeps_what_is_there(tmp_path: Path) -> None:
    def stop(context: ReportContext) -> Finding:
        raise KeyboardInterrupt

    sections = ["overview", Section("Stop", "stop", stop, show_count), "gradients"]
    found, page, _ = quick(box_of(), quadrants([0, 1]), tmp_path, sections=sections)
    assert set(found.failures) == {"stop", "gradients"}
    assert all("interrupted" in why for why in found.failures.values())
    assert page.has("What it is made of")


def test_an_interrupted_method_does_not_pass_for_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(real: Any) -> Any:
        @wraps(real)  # with its card
        def stopped(*args: Any, **kwargs: Any) -> Any:
            return replace(real(*args, **{**kwargs, "steps": 2}), interrupted=True)

        return stopped

    for family, method in (("synthesis", "class_image"), ("change", "morph")):
        room = sys.modules[f"unboxed.report.{family}"]
        with monkeypatch.context() as patch:
            patch.setattr(room, method, interrupted(getattr(room, method)))
            slug = room.SECTION.slug
            found, _, _ = quick(box_of(), quadrants([0, 1]), tmp_path / slug, sections=["overview", slug, "gradients"])
        assert set(found.failures) == {slug, "gradients"}
        assert all("interrupted" in why for why in found.failures.values())


def test_a_later_family_adds_a_section_by_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["unboxed.report"], "SECTIONS", [COUNT])
    assert quick(box_of(), quadrants([0]), tmp_path, sections=None)[1].has("1 counted")


def test_an_unknown_section_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'overview'"):
        report(box_of(), quadrants([0]), tmp_path / "out", sections=["overvew"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("judge", "why"),
    [
        (None, "no second model to judge the images"),
        (Box(nn.Sequential(nn.Flatten(), nn.Linear(100, 4)).eval(), Pixels((1, 10, 10))), "inputs of another shape"),
        (Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), Pixels((1, 8, 8))), "other classes"),
    ],
)
def test_no_verdict_without_a_fitting_judge(judge: Box | None, why: str, made: Any) -> None:
    from unboxed.report.judge_model import judge_or_missing_reason

    context = ReportContext(box_of(), None, None, judge)  # type: ignore[arg-type]
    assert judge_or_missing_reason(context)[0] is None
    assert why in judge_or_missing_reason(context)[1]


def test_a_judge_that_recognizes_the_control_too_is_not_trusted() -> None:
    from unboxed.report.judge_model import JudgePredictions, class_images_pass_control

    good, poor = (JudgePredictions(torch.zeros(10), torch.full((10,), p), n) for p, n in ((0.9, 10), (0.3, 4)))
    assert class_images_pass_control({"robust": good, "noise": poor})
    assert not class_images_pass_control({"robust": good, "noise": good})
    assert not class_images_pass_control(
        {"robust": good, "noise": JudgePredictions(torch.zeros(10), torch.full((10,), 0.85), 10)}
    )
    assert not class_images_pass_control({"robust": poor, "noise": poor})


def test_a_judge_that_recognizes_most_of_the_control_is_weak_evidence() -> None:
    from unboxed.report.judge_model import JudgePredictions, judge_check

    def verdict(control: int) -> tuple[str, str]:
        noise = JudgePredictions(torch.zeros(10), torch.full((10,), 0.5), control)
        good = JudgePredictions(torch.zeros(10), torch.full((10,), 0.9), 9)
        return judge_check({"robust": good, "faithful": good, "noise": noise}, "")

    assert verdict(5)[1] == "good"
    assert "weak evidence" not in verdict(5)[0]
    assert verdict(6)[1] == ""
    assert "weak evidence" in verdict(6)[0]


def test_an_ascent_that_fails_is_reported(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        model[1].weight.fill_(0.01)
        model[1].bias.copy_(torch.tensor([0.0, 0.1, 0.0]))
    box = Box(model, Pixels((1, 8, 8), mean=0.0, std=0.5), outputs="logits")
    found, page, facts = quick(box, torch.rand(4, 1, 8, 8), tmp_path, sections=["overview", "class-images", "morphs"])
    assert found.failures == {}
    assert page.has(
        "The ascent hardly moved", "show nothing", "shows\u00a0nothing".replace("\u00a0", " "), "not reached"
    )
    assert not any(change["reached"] for change in facts["findings"]["morphs"]["outcomes"])
    assert "differ most" not in page.text


def test_one_probability_is_read_as_no_and_yes(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()
    with torch.no_grad():
        model[1].weight.fill_(0.5)
        model[1].bias.fill_(-16.0)
    x = torch.stack([torch.full((1, 8, 8), v) for v in (0.3, 0.45, 0.55, 0.9)])
    box = Box(model, Pixels((1, 8, 8)), outputs="multilabel")
    examples = (x, torch.tensor([[0.0], [1.0], [1.0], [1.0]]))
    found, page, facts = quick(box, examples, tmp_path, sections=["overview", "activations", "gradients", "morphs"])
    assert found.failures == {}
    assert facts["title"] == "75.0% accuracy"
    assert facts["classes"] == ["no", "yes"]
    assert facts["findings"]["overview"]["confusions"] == [{"label": "yes", "prediction": "no", "times": 1}]
    assert page.has("predicted no", "predicted yes", "why yes", "why no")
    outputs = model(x).sigmoid()[:, 0].tolist()
    for row, p in enumerate(outputs):  # one sense: of the class that is predicted
        said = f"predicted {'yes' if p > 0.5 else 'no'}, p\u00a0{format_prob(max(p, 1 - p))}"
        assert f'alt="input, example {row}: {said}; label' in unescape(page.source)
    assert facts["headline"][-1] == 'Its most confident error: "yes" classified as "no", p\u00a00.83.'
    assert page.has('The model predicts "no", p 0.83. Its label is "yes".')


def test_one_number_is_an_output_and_no_prediction(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()
    box = Box(model, Pixels((1, 8, 8)), outputs="regression")
    found, page, facts = quick(box, torch.rand(3, 1, 8, 8), tmp_path, sections=["overview", "activations", "gradients"])
    assert found.failures == {}
    assert facts["title"].startswith("Outputs from ")
    assert page.has("The output is one number", "output ")
    assert not page.has("predicted 0")
    assert not page.has("exclude one another")


# -- the folder ----------------------------------------------------------------------------------------------


def test_a_second_report_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    quick(box_of(), (quadrants(ANSWERS), torch.tensor(LABELS)), tmp_path, sections=["morphs"])
    (tmp_path / "pictures" / "mine.png").write_bytes(b"kept")
    assert len(list((tmp_path / "pictures").iterdir())) == 9
    quick(box_of(), (quadrants(ANSWERS), torch.tensor(LABELS)), tmp_path, sections=["activations"])
    left = {p.name for p in (tmp_path / "pictures").iterdir()}
    assert left == {"mine.png", "filters.png", "activations.png"}


# -- small things --------------------------------------------------------------------------------------------


def test_the_module_is_the_function(tmp_path: Path) -> None:
    import unboxed.report  # noqa: F401  what makes `ub.report` the module

    found = ub.report(box_of(), quadrants([0, 1]), tmp_path, sections=QUICK, quiet=True)
    assert found.path == tmp_path / "index.html"


def test_examples_are_evenly_spread_and_bounded() -> None:
    assert evenly_spaced_indices(10, 4) == (0, 2, 5, 7)
    assert evenly_spaced_indices(3, 100) == (0, 1, 2)
    assert max_evaluated_examples_for((1, 28, 28)) == 10_000
    assert max_evaluated_examples_for((3, 224, 224)) == 265
    assert max_evaluated_examples_for((3, 4000, 4000)) == 64


def test_max_examples_bounds_what_is_evaluated(tmp_path: Path) -> None:
    _, page, facts = quick(box_of(), (quadrants(ANSWERS), torch.tensor(LABELS)), tmp_path, max_examples=5)
    assert facts["findings"]["overview"]["examples"] == 5
    assert page.has("Measured on 5 of 10 examples, evenly spread over the data")


def test_the_untrained_copy_is_new_and_the_model_is_not_touched() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 2)).eval()
    model.own = nn.Parameter(torch.arange(9.0))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    box = Box(model, Pixels((1, 8, 8)))
    a, b, c = randomize_all_layers(box, 0), randomize_all_layers(box, 0), randomize_all_layers(box, 1)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(a.model[0].weight, b.model[0].weight)
    assert not torch.equal(a.model[0].weight, c.model[0].weight)
    assert not torch.equal(a.model[0].weight, before["0.weight"])
    assert not torch.equal(a.model.own, before["own"])  # no start of its own: drawn with its mean and deviation
    assert 0 < a.model.own.mean() < 8


@pytest.mark.parametrize(
    ("share", "text"), [(1.0, "100%"), (0.0, "0%"), (0.9996, "99.96%"), (0.5, "50.0%"), (0.00004, "0.004%")]
)
def test_a_share_says_all_or_nothing_only_where_it_is(share: float, text: str) -> None:
    assert format_percent(share) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [(1.0, ">0.999"), (0.99999, ">0.999"), (0.997, "0.997"), (0.5, "0.50"), (1e-9, "<0.001"), (0.0, "<0.001")],
)
def test_a_probability_never_says_one_or_zero(p: float, text: str) -> None:
    assert format_prob(p) == text


def test_figures_are_shown_at_whole_multiples() -> None:
    assert display_size_pixels((28, 28), 112) == (112, 112)
    assert display_size_pixels((30, 20), 112) == (120, 80)
    assert display_size_pixels((60, 96), 112) == (60, 96)
    assert display_size_pixels((64, 64), 84) == display_size_pixels((64, 64), 112) == (128, 128)
    assert display_size_pixels((32, 32), 84) == (96, 96)
    assert display_size_pixels((400, 200), 112) == (112, 56)
    assert to_file_name("a/../b", 3, "Straße") == "a-b-3-stra-e"
    assert to_file_name("日本") == "picture"
