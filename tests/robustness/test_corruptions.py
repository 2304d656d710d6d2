"""Corruptions against their definitions and other people's code (Pillow, colorsys, scipy, scikit-image)."""

from __future__ import annotations

import colorsys
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage.transform import rotate
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import awkward
import unboxed as ub
from contracts.common import make_case
from unboxed.errors import DataError, InputError
from unboxed.robustness.corruption_functions import CORRUPTION_FN_AND_AMOUNTS, _blur_scale_factor, _rotate_and_shift
from unboxed.robustness.corruptions import CORRUPTIONS

corrupted = ub.robustness.corrupted
each_kind = pytest.mark.parametrize("kind", CORRUPTIONS)


def photos(shape: tuple[int, ...] = (3, 3, 20, 28), seed: int = 0) -> Tensor:
    """Smooth images (N, C, H, W)."""
    few = torch.rand(*shape[:2], 5, 7, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(few, shape[2:], mode="bicubic").clamp(0, 1)


def amount(kind: str, severity: int) -> float:
    return CORRUPTION_FN_AND_AMOUNTS[kind][1][severity - 1]


@each_kind
@pytest.mark.parametrize("shape", [(2, 1, 28, 28), (2, 3, 20, 28), (2, 2, 9, 5), (1, 1, 8, 8), (1, 3, 1, 3)])
def test_images_of_any_shape(kind: str, shape: tuple[int, ...]) -> None:
    x = photos(shape)
    before = x.clone()
    for severity in (1, 5):
        z = corrupted(x, kind, severity)
        assert z.shape == x.shape
        assert z.dtype == x.dtype
        assert z.min() >= 0
        assert z.max() <= 1
    assert corrupted(x.double(), kind, 3).dtype == torch.float64
    assert torch.equal(x, before)


@each_kind
def test_each_severity_changes_more(kind: str) -> None:
    x = photos((8, 3, 32, 32))
    off = [float((corrupted(x, kind, s) - x).square().mean()) for s in (1, 2, 3, 4, 5)]
    assert off[0] > 1e-6
    assert off[4] > 1.5 * off[0]
    if kind != "pixelate":  # blocks of equal size change less than larger and smaller ones in turn
        assert off == sorted(off)


@each_kind
def test_random_draws_depend_on_the_row(kind: str) -> None:
    """A row is corrupted alike wherever it is; chance is the seed's, and differs from row to row."""
    x = photos((1, 1, 16, 16)).expand(6, -1, -1, -1)
    whole = corrupted(x, kind, 4, seed=2)
    assert torch.equal(corrupted(x[:2], kind, 4, seed=2, rows=torch.tensor([4, 1])), whole[[4, 1]])
    by_chance = kind in ("gaussian_noise", "shot_noise", "motion_blur", "rotation")
    assert torch.equal(corrupted(x, kind, 4, seed=4), whole) != by_chance
    assert torch.equal(whole[:1].expand_as(whole), whole) != by_chance


def test_noise() -> None:
    x = torch.full((1, 1, 200, 200), 0.5)
    z = corrupted(x, "gaussian_noise", 2) - x
    assert abs(float(z.std()) - amount("gaussian_noise", 2)) < 0.003
    assert abs(float(z.mean())) < 0.003
    z = corrupted(x * 0.6, "shot_noise", 1)
    photons = z * amount("shot_noise", 1)
    assert torch.allclose(photons, photons.round(), atol=1e-4)
    assert abs(float(photons.mean()) - 18) < 0.15
    assert abs(float(photons.var()) - 18) < 0.6


def test_contrast_and_brightness() -> None:
    x = photos()
    z = corrupted(x, "contrast", 3)
    for image, new in zip(x.flatten(0, 1), z.flatten(0, 1), strict=True):
        assert torch.allclose(new, image.mean() + 0.2 * (image - image.mean()), atol=1e-6)
    x[0, :, 0, 0] = 0
    z = corrupted(x, "brightness", 2)
    for i, j in [(0, 0), (3, 9), (11, 20), (19, 27)]:
        h, s, v = colorsys.rgb_to_hsv(*x[0, :, i, j].tolist())
        assert z[0, :, i, j].tolist() == pytest.approx(colorsys.hsv_to_rgb(h, s, min(v + 0.2, 1)), abs=1e-5)
    gray = photos((1, 1, 9, 9))
    assert torch.allclose(corrupted(gray, "brightness", 2), (gray + 0.2).clamp(0, 1), atol=1e-6)


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_blur_is_scipys(severity: int) -> None:
    x = photos((2, 1, 40, 56)).double()
    sigma = amount("gaussian_blur", severity) * _blur_scale_factor(x[0])
    want = np.stack(
        [gaussian_filter(image, sigma, mode="mirror", truncate=np.ceil(3 * sigma) / sigma) for image in x[:, 0].numpy()]
    )
    assert np.allclose(corrupted(x, "gaussian_blur", severity)[:, 0].numpy(), want, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows(channels: int) -> None:
    """The bytes of a file written to memory, and read again."""
    x = photos((1, channels, 24, 16))
    pixels = (x[0].permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels).save(file, "JPEG", quality=int(amount("jpeg", 2)))
    want = np.asarray(Image.open(file)).reshape(24, 16, channels) / 255
    assert np.allclose(corrupted(x, "jpeg", 2)[0].permute(1, 2, 0).numpy(), want, atol=1e-7)


def test_pixels_become_blocks() -> None:
    x = photos((1, 2, 20, 40))
    z = corrupted(x, "pixelate", 5)  # a quarter
    blocks = x.view(1, 2, 5, 4, 10, 4).mean((3, 5))
    assert torch.allclose(z, blocks.repeat_interleave(4, 2).repeat_interleave(4, 3), atol=1e-6)


def test_rotation_is_scikit_images() -> None:
    """To the left for some rows and to the right for others; also where images are not square."""
    x = photos((8, 1, 40, 60)).double()
    z, ways = corrupted(x, "rotation", 5), set()
    for image, new in zip(x[:, 0].numpy(), z[:, 0].numpy(), strict=True):
        both = {s: rotate(image, s * 30, order=1, mode="reflect")[15:25, 20:40] for s in (-1, 1)}
        off = {s: float(np.abs(new[15:25, 20:40] - turned).max()) for s, turned in both.items()}
        ways.add(min(off, key=off.__getitem__))
        assert min(off.values()) < 1e-6
    assert ways == {-1, 1}


def test_motion_is_a_mean_of_moved_images() -> None:
    none = torch.zeros(())
    x = photos((1, 1, 12, 18))[0]
    assert torch.allclose(_rotate_and_shift(x, none, torch.tensor(3.0), none)[:, :, 3:], x[:, :, :-3], atol=1e-5)
    assert torch.allclose(_rotate_and_shift(x, none, none, torch.tensor(-2.0))[:, :-2], x[:, 2:], atol=1e-5)
    spot = torch.zeros(1, 1, 41, 41)
    spot[..., 20, 20] = 1
    z = corrupted(spot, "motion_blur", 5)[0, 0]
    places = z.nonzero().double()
    assert abs(float(z.sum()) - 1) < 0.02
    spread = torch.linalg.eigvalsh(torch.cov((places - 20).T, aweights=z[z > 0].double()))
    assert spread[1] > 10 * spread[0], "a line"


# ---- the table -------------------------------------------------------------------------------------------------------


def test_the_table_holds_the_models_predictions() -> None:
    c = make_case("color", n=7)
    kinds, severities = ("contrast", "gaussian_noise", "jpeg"), (2, 5)
    made = ub.robustness.corruptions(c.box, (c.x, c.y), kinds, severities=severities, seed=4, batch_size=3)
    for i, kind in enumerate(kinds):
        for j, severity in enumerate(severities):
            z = corrupted(c.x, kind, severity, seed=4)
            assert float(made.accuracy[i, j]) == pytest.approx(float((c.box.predict(z) == c.y).float().mean()))
            p = c.box.probs(z)[torch.arange(7), c.y]
            assert float(made.confidence[i, j]) == pytest.approx(float(p.mean()), abs=1e-6)
    assert made.clean_accuracy == pytest.approx(2 / 7)
    assert made.mean_accuracy == pytest.approx(float(made.accuracy.mean()))
    assert made.accuracy_by_kind[made.worst_kind] == min(made.accuracy_by_kind.values())
    assert made.n_examples == 7
    worst = replace(made, clean_accuracy=made.accuracy_by_kind[made.worst_kind] + 0.1)
    assert f"worst: {made.worst_kind.replace('_', ' ')}" in str(worst)


def test_where_nothing_falls_no_kind_is_the_worst() -> None:
    c = make_case("color", n=4)
    y = c.box.predict(corrupted(c.x, "contrast", 1, seed=0))
    made = ub.robustness.corruptions(c.box, (c.x, y), ["contrast"], severities=[1])
    assert made.mean_accuracy == 1
    assert "no kind of corruption lowers it" in str(made)
    assert "worst" not in str(made)


def test_leaving_kinds_out_changes_nothing() -> None:
    c = make_case("plain", n=5)
    whole = ub.robustness.corruptions(c.box, (c.x, c.y), seed=1)
    assert whole.accuracy.shape == (len(CORRUPTIONS), 5)
    one = ub.robustness.corruptions(c.box, TensorDataset(c.x, c.y), ["rotation"], severities=[4], seed=1)
    assert torch.equal(one.confidence[0, 0], whole.confidence[CORRUPTIONS.index("rotation"), 3])


def test_ctrl_c_keeps_finished_examples() -> None:
    c = make_case("plain", n=6)
    calls = 0

    def stop(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 8:  # three looks a batch
            raise KeyboardInterrupt

    c.box.model.register_forward_pre_hook(stop)
    made = ub.robustness.corruptions(c.box, (c.x, c.y), ["contrast"], severities=(1, 5), batch_size=2)
    assert made.interrupted
    assert made.n_examples == 4


BAD: list[dict[str, Any]] = [
    {"kinds": ["fog"]},
    {"kinds": []},
    {"severities": [0]},
    {"severities": 6},
    {"max_examples": 0},
    {"seed": 0.5},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_settings(bad: dict[str, Any]) -> None:
    c = make_case("plain")
    with pytest.raises(InputError):
        ub.robustness.corruptions(c.box, (c.x, c.y), **bad)


def test_bad_input() -> None:
    c = make_case("plain")
    for x, kind, severity in [
        (c.x * 255, "jpeg", 1), (c.x[0], "jpeg", 1), (c.x, "fog", 1), (c.x, "jpeg", 6), (c.x, "jpeg", True),
        (c.x / 0, "jpeg", 1), ((c.x * 255).byte(), "jpeg", 1), (None, "jpeg", 1),
    ]:  # fmt: skip
        with pytest.raises(InputError):
            corrupted(x, kind, severity)
    rows = ub.Box(nn.Linear(5, 3), ub.Features(tuple("abcde")))
    with pytest.raises(InputError):
        ub.robustness.corruptions(rows, (torch.rand(3, 5), torch.zeros(3).long()))
    with pytest.raises((DataError, InputError)):
        ub.robustness.corruptions(c.box, c.x)
    with pytest.raises(InputError, match="a 0 or a 1 for each label of shape"):
        ub.robustness.corruptions(ub.Box(c.box.model, awkward.GRAY_INPUTS, outputs="multilabel"), (c.x, c.y))


@pytest.mark.parametrize("shape", [(2, 12), (1, 4, 6, 5)], ids=["signals", "volumes"])
def test_signals_and_volumes_have_no_pictures_corruptions(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 3))
    box = ub.Box(model, ub.Pixels(shape), outputs="logits")
    data = (torch.rand(4, *shape), torch.tensor([0, 1, 2, 0]))
    assert ub.robustness.corruptions(box, data, severities=(1,)).kinds == ("gaussian_noise", "shot_noise", "contrast")
    for kinds in (["gaussian_noise", "jpeg"], "jpeg"):
        with pytest.raises(InputError, match=r"jpeg is of pictures \(C, H, W\) alone.*kinds=\('gaussian_noise'"):
            ub.robustness.corruptions(box, data, kinds)
    with pytest.raises(InputError, match="kinds must be of gaussian_noise, shot_noise, contrast; got 'fog'"):
        ub.robustness.corruptions(box, data, "fog")
