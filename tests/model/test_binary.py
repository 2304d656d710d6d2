"""Models of one yes/no logit or probability: two classes, no and yes, in every family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typer.testing import CliRunner

import unboxed as ub
from unboxed.cli import app
from unboxed.errors import InputError, OutputError

PIXELS = ub.Pixels((1, 6, 6))
ENDS: dict[str, Callable[[Tensor], Tensor]] = {
    "logit (N, 1)": lambda z: z,
    "logit (N,)": lambda z: z[:, 0],
    "squeezed logit": lambda z: z.squeeze(),
    "probability (N, 1)": torch.sigmoid,
    "probability (N,)": lambda z: z.sigmoid().squeeze(1),
}


class OneLogit(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor] = ENDS["logit (N, 1)"]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.end = nn.Conv2d(1, 4, 3), nn.Linear(64, 1), end
        with torch.no_grad():
            self.fc.weight *= 6
            self.fc.bias -= self.logit(images()).median() + 0.05

    def logit(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.logit(x))


def images(n: int = 8) -> Tensor:
    return torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def labels(model: OneLogit, x: Tensor) -> Tensor:
    return (model.logit(x)[:, 0] > 0).long()


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("n", [1, 8])
def test_predictions_and_probabilities_are_the_models(end: str, n: int) -> None:
    model, x = OneLogit(ENDS[end]), images(n)
    box, z = ub.Box(model, PIXELS, outputs="binary"), model.logit(images(n))[:, 0]
    assert box.classes == ("0", "1")
    assert box.n_outputs == 2
    assert torch.equal(box.predict(x), (z > 0).long())
    assert torch.allclose(box.probs(x), torch.stack([(-z).sigmoid(), z.sigmoid()], 1), atol=1e-6)
    assert torch.allclose(box(x).diff(dim=1)[:, 0], z, atol=1e-5)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("k", [0, 1, None])
def test_a_class_is_explained_by_the_models_own_logit(end: str, k: int | None) -> None:
    model, x = OneLogit(ENDS[end]), images().requires_grad_()
    box, z = ub.Box(model, PIXELS, outputs="binary"), model.logit(x)[:, 0]
    sign = z.detach().sign() if k is None else torch.full_like(z, 2 * k - 1)
    (want,) = torch.autograd.grad((sign * z).sum(), x)
    got = ub.attribution.gradient(box, x.detach(), k)
    assert torch.allclose(got, want, atol=1e-5)
    assert torch.allclose(got.score, (sign * z).detach(), atol=1e-5)
    assert got.target.tolist() == labels(model, x).tolist() if k is None else True
    occluded = ub.attribution.feature_ablation(box, x.detach(), k, baseline=0)
    assert bool((occluded != 0).any())


def test_labels_come_in_the_forms_of_the_loss() -> None:
    model, x = OneLogit(), images()
    box, y = ub.Box(model, PIXELS, outputs="binary"), labels(model, images())
    want = ub.adversarial.fgsm(box, x, y, eps=0.1).images
    for form in (y.float(), y.bool(), y[:, None], y[:, None].float()):
        assert torch.equal(ub.adversarial.fgsm(box, x, form, eps=0.1).images, want)
    for wrong in (y + 2, y.float() + 0.5, torch.zeros(8, 2, dtype=torch.long)):
        with pytest.raises(InputError):
            ub.adversarial.fgsm(box, x, wrong, eps=0.1)


def test_the_loss_is_binary_cross_entropy_and_the_margin_the_logit() -> None:
    model, x = OneLogit(), images()
    box, y, z = ub.Box(model, PIXELS, outputs="binary"), labels(model, images()), model.logit(images())[:, 0]
    acts = {"logits": box(x)}
    want = F.binary_cross_entropy_with_logits(z, y.to(z), reduction="none")
    assert torch.allclose(ub.loss(y)(acts), want, atol=1e-6)
    assert torch.allclose(ub.margin(y)(acts), -z.abs(), atol=1e-5)


ATTACKS: dict[str, dict[str, Any]] = {
    **{name: {"eps": 0.4} for name in ("fgsm", "pgd", "apgd", "square")},
    **{name: {} for name in ("deepfool", "ddn", "fmn", "fab")},
    "carlini_wagner": {"steps": 40, "binary_search_steps": 3},
}


@pytest.mark.parametrize("attack", [*ATTACKS])
def test_attacks_change_the_sign_of_the_logit(attack: str) -> None:
    model, x = OneLogit(ENDS["probability (N, 1)"]), images()
    box, y = ub.Box(model, PIXELS), labels(model, images())
    assert box.outputs == "binary"
    method = getattr(ub.adversarial, attack)
    result = method(box, x, y, **ATTACKS[attack])
    assert result.success.any()
    assert torch.equal(labels(model, result.images) != y, result.success)


def test_robustness_calibration_corruptions_and_smoothing() -> None:
    model, x = OneLogit(), images(40)
    box, y = ub.Box(model, PIXELS, outputs="binary"), labels(model, images(40))
    y[:4] = 1 - y[:4]
    robust = ub.robustness.evaluate(box, (x, y.float()), eps=[0.01, 0.3], max_examples=20)
    assert robust.clean_accuracy.value == 0.8
    calibration = ub.robustness.calibration(box, (x, y))
    assert calibration.accuracy == pytest.approx(0.9)
    want = F.binary_cross_entropy_with_logits(model.logit(x)[:, 0], y.float())
    assert calibration.uncalibrated.nll == pytest.approx(float(want.detach()), abs=1e-5)
    assert ub.robustness.corruptions(box, (x, y), ["gaussian_noise"], severities=[1]) is not None
    assert ub.robustness.smoothed(box, x[:2], sigma=0.1, n=100) is not None


def test_synthesis_reaches_either_class() -> None:
    box = ub.Box(OneLogit(), PIXELS, outputs="binary")
    assert ub.synthesis.class_image(box, steps=40).probs.argmax(1).tolist() == [0, 1]
    morph = ub.synthesis.morph(box, images(), 1 - box.predict(images()), confidence=0.7)
    assert morph.confidence_reached.all()
    assert torch.equal(box.predict(morph.images), 1 - box.predict(images()))


@pytest.mark.parametrize("outputs", ["multilabel", "logits", "probs"])
def test_one_output_of_another_kind_is_binary(outputs: Any) -> None:
    model = OneLogit(ENDS["probability (N, 1)"] if outputs == "probs" else ENDS["logit (N, 1)"])
    box = ub.Box(model, PIXELS, outputs=outputs, classes=["cat", "dog"])
    assert (box.outputs, box.classes) == ("binary", ("cat", "dog"))
    assert torch.equal(box.predict(images()), labels(model, images()))
    assert box.with_model(OneLogit()).outputs == "binary"


def test_what_determines_one_output_and_what_is_asked() -> None:
    assert ub.Box(OneLogit(), PIXELS, classes=["cat", "dog"]).outputs == "binary"
    assert ub.Box(OneLogit(), PIXELS, outputs="binary", classes=["dog"]).classes == ("not dog", "dog")
    assert ub.Box(OneLogit(ENDS["probability (N,)"]), PIXELS).outputs == "binary"
    with pytest.raises(OutputError, match=r'outputs="binary".*outputs="regression"'):
        ub.Box(OneLogit(), PIXELS)
    with pytest.raises(OutputError, match="one yes/no output per example; the model has 2"):
        ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), PIXELS, outputs="binary")


@pytest.mark.parametrize("shape", ["(N, 1, H, W)", "(N, H, W, 1)", "(N, H, W)"])
def test_a_map_of_yes_and_no(shape: str) -> None:
    arrange = {"(N, 1, H, W)": lambda z: z, "(N, H, W, 1)": lambda z: z.movedim(1, -1), "(N, H, W)": lambda z: z[:, 0]}
    conv = nn.Conv2d(1, 1, 3, padding=1)

    class Segmenter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            return arrange[shape](self.conv(x))

    box, x = ub.Box(Segmenter(), PIXELS, outputs="binary"), images()
    assert torch.equal(box.predict(x), (conv(x)[:, 0] > 0).long())
    assert box.output_map_shape == (6, 6)


@pytest.mark.usefixtures("quick_reports")
def test_the_report_and_the_command_line(tmp_path: Path) -> None:
    box, x = ub.Box(OneLogit(), PIXELS, outputs="binary", classes=["cat", "dog"]), images(24)
    y = labels(box.model, x)
    y[0] = 1 - y[0]
    sections = ["overview", "gradients", "attacks", "class-images"]
    report = ub.report(box, (x, y[:, None].float()), tmp_path, sections=sections, quiet=True)
    assert report.failures == {}
    page = report.path.read_text()
    assert "95.8% accuracy" in page
    assert "dog" in page
    file = tmp_path / "one.py"
    file.write_text(
        "import torch, unboxed as ub\nfrom torch import nn\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(36, 1)), ub.Pixels((1, 6, 6))\n"
    )
    data = _folder(tmp_path / "data", x, y)
    words = ["--model", f"{file}:make", "--outputs", "binary"]
    image = str(next((data / "1").iterdir()))
    for command in (["attack", "--eps", "0.1", "--data", str(data)], ["explain", image, "--method", "gradient"]):
        done = CliRunner().invoke(app, [*command, *words, "--out", str(tmp_path / command[0])])
        assert done.exit_code == 0, done.output


def _folder(root: Path, x: Tensor, y: Tensor) -> Path:
    from PIL import Image

    for i, (image, label) in enumerate(zip(x, y, strict=True)):
        (root / str(int(label))).mkdir(parents=True, exist_ok=True)
        Image.fromarray((image[0] * 255).byte().numpy()).save(root / str(int(label)) / f"{i}.png")
    return root


SYMMETRIC_ENDS = {
    "tanh": nn.Tanh(),
    "softsign": nn.Softsign(),
    "hardtanh": nn.Sequential(nn.Hardtanh(), nn.Flatten()),
}


@pytest.mark.parametrize("name", SYMMETRIC_ENDS)
@pytest.mark.parametrize("outputs", [None, "binary", "logits"])
def test_one_output_that_ends_in_a_tanh_is_asked_about(name: str, outputs: Any) -> None:
    """As a logit, its probabilities would be between 27 % and 73 %."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), SYMMETRIC_ENDS[name]).eval()
    inputs, x = ub.Pixels((1, 4, 4)), torch.rand(3, 1, 4, 4)
    with pytest.raises(
        OutputError, match=rf"ends in {name}, in \[-1, 1\].*\"regression\".*\(t / 2 \+ 0\.5\)\.logit\(\)"
    ):
        ub.Box(model, inputs, outputs=outputs)
    with pytest.raises(OutputError, match="regression"):
        ub.Box(model, inputs, classes=["no", "yes"])
    assert torch.equal(ub.Box(model, inputs, outputs="regression")(x), model(x))
    box = ub.Box(nn.Sequential(*model[:2], nn.Tanh()), inputs, outputs="binary", output=lambda t: (t / 2 + 0.5).logit())
    z = model[:2](x)
    assert torch.allclose(box(x).softmax(1)[:, 1:], (z.tanh() + 1) / 2, atol=1e-5)  # yes where the tanh is 1
