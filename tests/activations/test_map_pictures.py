"""Maps as figures, as a block of the report, and as files for TensorBoard's projector."""

from __future__ import annotations

import base64
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import unboxed as ub
from unboxed.activations import tsne
from unboxed.errors import InputError
from unboxed.plots import embedding as drawn
from unboxed.plots.projector import projector
from unboxed.report import map as section
from unboxed.report import report
from unboxed.report.plane import array_to_base64, make_thumbnail_atlas

DRAW = torch.Generator().manual_seed(0)


def colors_in(picture: Image.Image) -> set[tuple[int, ...]]:
    return set(map(tuple, np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()))


def rgb(color: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(color[1:]))


def test_points_keep_their_shape() -> None:
    """One scale for both axes, inside the square, upwards."""
    at = drawn.normalize_points(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 5.0]]))
    assert np.ptp(at[:, 0]) == pytest.approx(2 * np.ptp(at[:, 1]))
    assert at.min() > 0
    assert at.max() < 1
    assert at[2, 1] < at[0, 1]
    assert np.isfinite(drawn.normalize_points(torch.zeros(3, 2))).all()
    for bad in (torch.zeros(3), torch.zeros(3, 3), torch.zeros(0, 2), torch.full((2, 2), torch.nan)):
        with pytest.raises(InputError):
            drawn.normalize_points(bad)


def test_a_scatter_has_every_class_in_its_color() -> None:
    points, y = torch.randn(200, 2, generator=DRAW), torch.arange(200) % 12
    seen = colors_in(drawn.scatter_image(points, y, [f"class {k}" for k in range(12)]))
    assert {rgb(c) for c in drawn.class_colors(12)} <= seen
    assert drawn.scatter_image(points).size == (520, 520)
    assert len(set(drawn.class_colors(20))) == 20
    for bad in (y[:-1], y - 1, y + 0.5):
        with pytest.raises(InputError):
            drawn.scatter_image(points, bad)


def numbered(n: int) -> torch.Tensor:
    """Images whose gray level is their number."""
    return (torch.arange(n).float() / (n - 1)).view(n, 1, 1, 1).expand(n, 1, 4, 4)


def test_a_grid_shows_each_image_once_and_keeps_neighbors() -> None:
    """Points on a line that are already a grid keep their places."""
    side = 6
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).reshape(-1, 2)
    order = torch.randperm(side**2, generator=DRAW)
    picture = np.asarray(drawn.neighbor_preserving_image_grid(places[order].float(), numbered(side**2)[order], cell=4))[
        ::4, ::4, 0
    ]
    want = np.asarray((numbered(side**2)[:, 0, 0, 0] * 255).round().view(side, side).flip(0))
    assert np.array_equal(picture, want)


def test_a_grid_of_more_points_than_are_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "MAX_OPTIMALLY_ASSIGNED_IMAGES", 16)
    picture = drawn.neighbor_preserving_image_grid(torch.randn(300, 2, generator=DRAW), numbered(300), cell=4)
    assert picture.size == (16, 16)


def test_no_thumbnail_covers_another() -> None:
    at = np.random.default_rng(0).uniform(0, 200, (400, 2))
    kept = drawn.select_non_overlapping_points(at, 20)
    apart = np.abs(at[kept][:, None] - at[kept][None]).max(-1) + 1e9 * np.eye(len(kept))
    assert apart.min() >= 20
    left = [i for i in range(400) if i not in kept]
    assert all((np.abs(at[i] - at[kept]).max(-1) < 20).any() for i in left)  # and none is left out in vain
    assert drawn.thumbnail_scatter_image(at, torch.rand(400, 3, 8, 6), side=300).size == (300, 300)


def test_maps_side_by_side() -> None:
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), ub.Pixels((1, 4, 4)))
    maps = tsne(box, torch.rand(30, 1, 4, 4, generator=DRAW))
    assert drawn.tsne_scatter_sheet(maps, torch.arange(30) % 3, side=200).width > 400
    assert drawn.tsne_scatter_sheet(maps, side=200).width > 400


# ---- the block -------------------------------------------------------------------------------------------------------


def test_numbers_are_packed_as_a_typed_array_reads_them() -> None:
    assert np.frombuffer(base64.b64decode(array_to_base64([1, 258], np.uint16)), "<u2").tolist() == [1, 258]


def test_an_atlas_keeps_its_budget() -> None:
    images = torch.rand(100, 1, 28, 28, generator=DRAW)
    whole, tight = make_thumbnail_atlas(images), make_thumbnail_atlas(images, max_bytes=6000)
    assert (whole.width, whole.columns, whole.kind) == (28, 10, "png")
    assert len(tight.content) <= 6000
    assert 8 <= tight.width < 28
    sheet = np.asarray(Image.open(BytesIO(whole.content)))
    assert sheet.shape == (280, 280)
    assert np.abs(sheet[28:56, 28:56] / 255 - images[11, 0].numpy()).max() < 0.07
    assert make_thumbnail_atlas(torch.rand(5, 3, 120, 90, generator=DRAW)).kind == "jpeg"


def built(box: ub.Box, data: Any, out: Path) -> tuple[str, dict[str, str]]:
    made = report(box, data, out, sections=[section.SECTION], quiet=True)
    return made.path.read_text(), made.failures


def test_the_section_for_all_kinds_of_models(tmp_path: Path) -> None:
    torch.manual_seed(0)
    table = ub.Box(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), ub.Features(("a", "b", "c", "d")))
    number = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(48, 1)).eval(), ub.Pixels((3, 4, 4)), outputs="regression")
    photos = ub.Box(
        nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.Flatten(), nn.Linear(4 * 12 * 9, 30)).eval(),
        ub.Pixels((3, 50, 40)), classes=[f"kind {k} </script>" for k in range(30)],
    )  # fmt: skip
    cases = {
        "table": (table, (torch.randn(40, 4), torch.arange(40) % 3)),
        "number": (number, (torch.rand(12, 3, 4, 4), torch.rand(12))),
        "photos": (photos, (torch.rand(45, 3, 50, 40), torch.arange(45) % 30)),
        "no labels": (photos, torch.rand(12, 3, 50, 40)),
        "few": (number, (torch.rand(4, 3, 4, 4), torch.rand(4))),
    }
    pages = {name: built(box, data, tmp_path / name) for name, (box, data) in cases.items()}
    assert {name: failures for name, (_, failures) in pages.items() if failures} == {}
    assert {name for name, (text, _) in pages.items() if 'class="map"' in text} == set(cases) - {"few"}
    assert "at least 6 examples" in pages["few"][0]
    assert "</script>" not in pages["photos"][0].split('type="application/json">')[1].split("</script>")[0]
    assert 'value="images"' not in pages["table"][0]


# ---- TensorBoard -----------------------------------------------------------------------------------------------------


def read_back(config: Path) -> list[dict[str, Any]]:
    """By TensorBoard's own parsers: the protobuf config, the tables; and the sprite cut as its page cuts it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from google.protobuf import text_format
        from tensorboard.plugins.projector import projector_plugin
        from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    parsed = text_format.Parse(config.read_text(encoding="utf-8"), ProjectorConfig())
    found = []
    for e in parsed.embeddings:
        table = projector_plugin._read_tensor_tsv_file(str(config.parent / e.tensor_path))
        entry: dict[str, Any] = {"name": e.tensor_name, "table": table, "thumbs": None, "labels": None}
        if e.metadata_path:
            head, *lines = (config.parent / e.metadata_path).read_text(encoding="utf-8").rstrip("\n").split("\n")
            assert head.split("\t") == ["label", "example"]
            entry["labels"] = [line.split("\t") for line in lines]
        if e.sprite.image_path:
            sheet = np.asarray(Image.open(config.parent / e.sprite.image_path).convert("L"))
            w, h = e.sprite.single_image_dim
            entry["size"], a_row = sheet.shape, sheet.shape[1] // w
            entry["thumbs"] = [sheet[i // a_row * h :, i % a_row * w :][:h, :w] for i in range(len(table))]
        found.append(entry)
    return found


def test_the_projector_reads_what_was_written(tmp_path: Path) -> None:
    h, images, y = torch.randn(10, 5, generator=DRAW), numbered(10), torch.arange(10) % 3
    names = ["a\tcat", "zwölf\n", ""]
    config = projector({"fc1": h, 'odd "name"\n': h[:, :2]}, tmp_path / "run", images=images, labels=y, classes=names)
    assert config.name == "projector_config.pbtxt"
    first, second = read_back(config)
    assert (first["name"], second["name"]) == ("fc1", 'odd "name"')
    assert np.allclose(first["table"], h, atol=1e-5)
    assert np.allclose(second["table"], h[:, :2], atol=1e-5)
    assert [k for k, _ in first["labels"]][:3] == ["a cat", "zwölf", "(no name)"]
    assert [t.mean() for t in first["thumbs"]] == [pytest.approx(255 * i / 9, abs=0.6) for i in range(10)]


def test_sprites_stay_under_the_limit_by_shrinking_then_by_splitting(tmp_path: Path) -> None:
    n = 300
    h = torch.arange(n).float()[:, None]
    images = numbered(n).repeat_interleave(8, 2).repeat_interleave(8, 3)  # 32 x 32
    (shrunk,) = read_back(projector(h, tmp_path / "a", images=images, labels=torch.zeros(n).long(), max_pixels=400))
    assert max(shrunk["size"]) <= 400
    assert shrunk["thumbs"][0].shape == (22, 22)
    parts = read_back(projector(h, tmp_path / "b", images=images, labels=torch.zeros(n).long(), max_pixels=100))
    assert len(parts) == 9
    assert parts[0]["name"] == "features, part 1"
    assert all(max(p["size"]) <= 100 for p in parts)
    assert np.concatenate([p["table"] for p in parts])[:, 0].tolist() == list(range(n))
    assert [int(row) for p in parts for _, row in p["labels"]] == list(range(n))
    thumbs = [t.mean() for p in parts for t in p["thumbs"]]
    assert np.abs(np.array(thumbs) - 255 * np.arange(n) / (n - 1)).max() < 1


def test_wide_images_and_maps_and_bad_input(tmp_path: Path) -> None:
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(32, 3)).eval(), ub.Pixels((1, 2, 16)))
    x = torch.rand(9, 1, 2, 16, generator=DRAW)
    (entry,) = read_back(projector(tsne(box, x), tmp_path, images=x, max_pixels=64))
    assert (entry["name"], entry["thumbs"][8].shape, entry["labels"]) == ("input", (2, 16), None)
    assert max(entry["size"]) <= 64
    for bad in (torch.zeros(3), torch.zeros(0, 2), {}, {"a": torch.zeros(3, 2), "b": torch.zeros(4, 2)}):
        with pytest.raises(InputError):
            projector(bad, tmp_path)
    with pytest.raises(InputError, match="one label per point"):
        projector(torch.zeros(3, 2), tmp_path, labels=torch.zeros(4))
