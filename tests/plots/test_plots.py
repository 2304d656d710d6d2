"""Colors, contact sheets, methods' results as sheets, and files that are written in full or not at all."""

from __future__ import annotations

import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import unboxed as ub
from unboxed import plots
from unboxed.errors import InputError, WriteError
from unboxed.plots import colors, draw
from unboxed.plots.generated import score_caption
from unboxed.plots.sheet import ColorBar, Tile, contact_sheet
from unboxed.plots.text import get_font, wrap_text


def lightness(table: np.ndarray) -> np.ndarray:
    return table.astype(float) @ np.array([0.2126, 0.7152, 0.0722])


# -- colors --------------------------------------------------------------------------------------------------


def test_zero_is_white_and_each_sign_has_its_color() -> None:
    low, zero, high = colors.signed_to_rgb([-2.0, 0.0, 2.0])
    assert zero.tolist() == [255, 255, 255]
    assert low[2] > low[0]
    assert high[0] > high[2]


def test_the_signed_range_is_symmetric_whatever_the_values() -> None:
    a, b = colors.signed_to_rgb([0.5, 1.0]), colors.signed_to_rgb([-0.5, 1.0])
    assert a[0].tolist() == colors.signed_to_rgb([0.5], vmax=1.0)[0].tolist()
    assert b[0].tolist() == colors.signed_to_rgb([-0.5], vmax=1.0)[0].tolist()
    assert b[1].tolist() == colors.SIGNED_COLORMAP[-1].tolist()


def test_lightness_alone_shows_the_magnitude() -> None:
    """Safe for color blindness: from white, both sides only get darker; magnitudes only get lighter."""
    light = lightness(colors.SIGNED_COLORMAP)
    assert (np.diff(light[:128]) >= -1).all()
    assert (np.diff(light[128:]) <= 1).all()
    assert (np.diff(lightness(colors.MAGNITUDE_COLORMAP)) >= -1).all()


def test_the_magnitude_table_is_magma() -> None:
    real = matplotlib.colormaps["magma"](np.arange(256))[:, :3] * 255
    assert np.abs(real - colors.MAGNITUDE_COLORMAP).max() <= 3


def test_the_largest_magnitude_is_never_zero_and_ignores_values_that_are_not_finite() -> None:
    assert colors.max_magnitude(np.zeros(4)) == 1.0
    assert colors.max_magnitude([1.0, -3.0, np.nan, np.inf]) == 3.0
    assert colors.max_magnitude(np.r_[np.zeros(999), 5.0], quantile=0.9) == 5.0
    assert colors.signed_to_rgb([np.nan], vmax=1.0)[0].tolist() == [128, 128, 128]


def test_three_channels_are_colors_and_others_a_gray_mean() -> None:
    x = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1)
    assert colors.image_to_rgb(x).tolist() == [[[0, 128, 255]]]
    assert colors.image_to_rgb(x[:1]).tolist() == [[[0, 0, 0]]]
    assert colors.image_to_rgb(x[1:]).tolist() == [[[191, 191, 191]]]  # two channels: their mean, gray
    assert colors.image_to_rgb(x.bfloat16()[None].requires_grad_()).shape == (1, 1, 1, 3)


def test_small_images_are_enlarged_by_nearest_neighbor_and_photos_only_shrunk() -> None:
    small = np.random.default_rng(0).integers(0, 255, (28, 28, 3), dtype=np.uint8)
    big = np.asarray(colors.resize_to_side(small, 112))
    assert (big == small.repeat(4, 0).repeat(4, 1)).all()
    assert colors.resize_to_side(np.zeros((200, 400, 3), np.uint8), 140).size == (140, 70)
    assert colors.resize_to_side(np.zeros((120, 100, 3), np.uint8), 140).size == (100, 120)


def test_small_multiples_are_on_a_grid_with_transparent_gaps() -> None:
    tiles = np.stack([np.full((3, 3, 3), v, np.uint8) for v in (10, 20, 30)])
    page = colors.tile_images(tiles, 2, cell=12, max_width=24)
    gap = 3
    assert page.shape == (12 + gap + 12, 12 + gap + 12, 4)
    assert page[0, 0].tolist() == [10, 10, 10, 255]
    assert page[0, -1].tolist() == [20, 20, 20, 255]
    assert page[-1, 0].tolist() == [30, 30, 30, 255]
    assert not page[:, 12 : 12 + gap, 3].any()
    assert not page[-1, -1].any()


# -- sheets --------------------------------------------------------------------------------------------------


def test_a_sheet_has_the_tiles_in_their_cells() -> None:
    red, blue = (np.full((10, 10, 3), c, np.uint8) for c in ((200, 0, 0), (0, 0, 200)))
    page = np.asarray(contact_sheet([[Tile(red), None], [None, Tile(blue)]], side=100))
    reds, blues = (np.argwhere((page == c).all(-1)) for c in ((200, 0, 0), (0, 0, 200)))
    assert len(reds) == len(blues) == 100 * 100
    assert (blues.min(0) > reds.max(0)).all()


def test_wrapped_text_fits_the_width() -> None:
    face = get_font(12)
    lines = wrap_text("a name that is far too long for its width\nand another", 80, face, max_lines=2)
    assert len(lines) == 2
    assert lines[-1].endswith("…")
    assert all(face.getlength(line) <= 80 for line in lines)
    assert face.getlength(wrap_text("Donaudampfschifffahrtsgesellschaft", 80, face)[0]) <= 80


def test_numbers_in_captions_have_a_minus_sign() -> None:
    assert wrap_text("score -9.96\nr -0.00", 200, get_font(12)) == ["score −9.96", "r 0.00"]


def test_a_score_names_what_it_is_of() -> None:
    assert [score_caption(s, n) for s, n in ((-9.957, "3"), (0.5, ""))] == ["score of 3: −9.96", "score 0.5"]


def test_captions_titles_and_color_bars_make_the_sheet_higher() -> None:
    tile = np.zeros((10, 10, 3), np.uint8)
    plain = contact_sheet([[Tile(tile)]])
    captioned = contact_sheet([[Tile(tile, "one\ntwo\nthree")]], title="title", bars=[ColorBar("signed", 2.0)])
    assert captioned.height > plain.height + 3 * 15
    assert ColorBar("signed", 2.0).tick_labels == ("−2", "0", "+2")
    assert ColorBar("magnitude", 0.25).tick_labels == ("0", "0.25")


def test_an_empty_sheet_is_an_image() -> None:
    assert min(contact_sheet([]).size) > 0
    assert min(contact_sheet([[None]]).size) > 0


# -- methods' results ----------------------------------------------------------------------------------------


def morphed(t: int = 6, still: int = 0) -> SimpleNamespace:
    """A morph of two rows over t frames, the last `still` of which repeat."""
    steps = torch.arange(t).clamp(max=t - 1 - still).float() / t
    frames = steps.view(t, 1, 1, 1, 1).expand(t, 2, 1, 8, 8)
    probs = torch.stack([1 - steps, steps], 1)[:, None].expand(t, 2, 2)
    gradient = torch.ones(2, 1, 8, 8)
    return SimpleNamespace(
        frames=frames,
        probs=probs,
        initial_gradient=gradient,
        before_clamp=torch.tensor([False, True]),
        targets=torch.tensor([1, 1]),
        classes=("cat", "dog"),
    )


def test_frames_end_with_the_last_change_of_a_row() -> None:
    frames, probs = draw.morph_frames(morphed(6, still=2), 0)
    assert len(frames) == len(probs) == 4
    assert len(draw.morph_frames(morphed(3, still=2), 0)[0]) == 1  # never moved


def test_a_strip_shows_input_gradient_steps_and_result() -> None:
    strip = plots.morph_strip(morphed(), 1, steps=4)
    one = plots.morph_strip(morphed(3, still=2), 0)
    assert strip.width > one.width  # five pictures against three
    assert (np.asarray(strip) == colors.SIGNED_COLORMAP[-1]).all(-1).any()  # the gradient, at the end of its scale


def test_evenly_spaced_indices_include_both_ends() -> None:
    assert draw.evenly_spaced_indices(10, 4) == [0, 3, 6, 9]
    assert draw.evenly_spaced_indices(3, 9) == [0, 1, 2]
    assert draw.evenly_spaced_indices(0, 4) == []


def test_compared_maps_share_a_scale_and_the_untrained_model_has_another() -> None:
    x, strong = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    maps = {"a": strong, "b": strong / 100, "untrained": strong / 100}
    page = np.asarray(plots.gradients(x, maps, own_scale=["untrained"]))
    full = (page == colors.SIGNED_COLORMAP[-1]).all(-1).sum()
    two_maps = 2 * (8 * 18) ** 2
    assert two_maps <= full < 1.2 * two_maps  # a and untrained, but not b, are at the end of their scale


def test_a_confused_input_is_shown_two_by_three() -> None:
    x, maps = torch.full((1, 8, 8), 0.5), torch.stack([torch.ones(1, 8, 8), -torch.ones(1, 8, 8)])
    page = np.asarray(plots.confused(x, maps, ["4", "9"], label="4", factor=0.5, logits=[5.0, 5.01]))
    cell = (8 * 18) ** 2
    assert cell <= (page == colors.SIGNED_COLORMAP[-1]).all(-1).sum() < 1.2 * cell
    assert cell <= (page == colors.SIGNED_COLORMAP[0]).all(-1).sum() < 1.2 * cell
    assert (page == 0).all(-1).sum() >= cell  # pushed down by half: black


@pytest.mark.parametrize("shape", [(5,), (100,), (3, 7), (1, 4, 4), (40, 9, 5), (3, 300, 200), (30000,), (900, 4000)])
@pytest.mark.parametrize("low", [0.0, -1.0])
def test_activations_of_any_shape_become_one_bounded_image(shape: tuple[int, ...], low: float) -> None:
    h = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) + low
    picture = draw.channel_map_grid(h, max_width=400)
    assert picture.ndim == 3
    assert max(picture.shape) <= 1100
    assert draw.activation_color_bar(h).kind == ("signed" if low else "magnitude")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_filters_of_any_channels(channels: int) -> None:
    picture, bar = draw.filter_grid(torch.randn(70, channels, 5, 5, generator=torch.Generator().manual_seed(0)))
    assert picture.shape[2] == 4
    assert bar.kind == ("gray" if channels == 3 else "signed")
    assert plots.filters(torch.ones(2, channels, 3, 3)).width > 0


def test_class_images_and_activation_maps_become_sheets() -> None:
    rows = {"a": torch.full((3, 1, 8, 8), 0.2), "control": torch.zeros(3, 1, 8, 8)}
    page = np.asarray(plots.class_sheet(rows, ["x", "y", "z"], {"a": ["p 0.5"] * 3}))
    assert (page == 51).all(-1).sum() == 3 * 80**2
    page = np.asarray(plots.class_sheet(rows, ["x", "y", "z"], side=140))
    assert (page == 51).all(-1).sum() == 3 * 144**2
    layer = SimpleNamespace(path="conv", type="Conv2d", inputs=torch.rand(2, 1, 8, 8), outputs=torch.randn(2, 4, 6, 6))
    assert plots.activations([layer], 1).height > 100


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("values", [2, 255])
def test_a_png_keeps_every_pixel(mode: str, values: int) -> None:
    pixels = np.random.default_rng(0).integers(0, values, (20, 30, len(mode)), dtype=np.uint8)
    again = Image.open(BytesIO(plots.png_bytes(pixels))).convert(mode)
    assert (np.asarray(again) == pixels).all()


def test_few_colors_take_one_byte_per_pixel() -> None:
    gray = colors.gray_to_rgb(np.linspace(0, 1, 900).reshape(30, 30))
    assert Image.open(BytesIO(plots.png_bytes(gray))).mode == "P"


def test_a_gif_has_the_frames_and_holds_the_last(tmp_path: Path) -> None:
    frames = [np.full((8, 8, 3), v, np.uint8) for v in (0, 120, 250)]
    path = plots.save_gif(frames, tmp_path / "a" / "morph.gif", ms=50, last_ms=900)
    with Image.open(path) as made:
        shown = [(f.convert("L").getpixel((0, 0)), f.info["duration"]) for f in ImageSequence.Iterator(made)]
        assert made.info["loop"] == 0
    assert [d for _, d in shown] == [50, 50, 900]
    assert [abs(v - w) <= 4 for (v, _), w in zip(shown, (0, 120, 250), strict=True)] == [True] * 3
    with pytest.raises(InputError, match="at least one frame"):
        plots.save_gif([], tmp_path / "none.gif")


def test_files_are_written_in_full_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = plots.save(np.zeros((4, 4, 3), np.uint8), tmp_path / "x.png")
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unboxed.plots.files.os.replace", full)
    with pytest.raises(WriteError, match="No space left"):
        plots.save(np.ones((9, 9, 3), np.uint8), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_a_path_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="Choose a folder"):
        plots.save(np.zeros((4, 4, 3), np.uint8), tmp_path / "file" / "x.png")
    with pytest.raises(WriteError, match=r"\.xyz"):
        plots.save(np.zeros((4, 4, 3), np.uint8), tmp_path / "x.xyz")


@pytest.mark.parametrize("ending", [".csv", ".svg"])
def test_of_an_unknown_ending_those_are_named_that_are_written(ending: str, tmp_path: Path) -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    result = ub.attribution.gradient(box, ub.data.digits("test").first(1).x, 3)
    with pytest.raises(WriteError, match=re.escape(repr(ending))) as caught:
        result.save(tmp_path / f"g{ending}")
    named = re.findall(r"\.[a-z]+\b", str(caught.value).rpartition(ending)[2])
    assert {".png", ".pdf", ".npz", ".json", ".html"} <= {*named}
    for known in named:
        assert result.save(tmp_path / f"g{known}").stat().st_size > 0


def test_drawing_needs_neither_torch_nor_a_figure_library() -> None:
    drawn = "import sys, unboxed.plots as p; p.sheet.contact_sheet([[]], title='x')"
    code = f"{drawn}; print({{'torch', 'matplotlib'}} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"


def test_results_with_images_become_a_sheet() -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    x = ub.data.digits("test").first(2).x
    for made in (ub.synthesis.class_image(box, [0, 1], steps=1), ub.synthesis.morph(box, x, 3, steps=1), x,
                 ub.synthesis.minimal_deactivation(box, x, ub.channel("relu1", 0), steps=1)):  # fmt: skip
        assert ub.plots.image_sheet(made).size[0] > 100
