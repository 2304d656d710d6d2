"""Image files: formats, bit depths, and images of quite another kind than the model's."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, features

import unboxed as ub
from unboxed.errors import DataError, UnboxedWarning
from unboxed.inputs import image_files
from unboxed.inputs.image_files import file_fault, read_image

GRAY, RGB = ub.Pixels((1, 8, 8)), ub.Pixels((3, 8, 8))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / "a.AVIF", format="AVIF")
    color = ub.data.folder(tmp_path, RGB)[0][0][:, 4, 4]
    torch.testing.assert_close(color, torch.tensor([200, 100, 50]) / 255, atol=0.02, rtol=0)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99
FOREIGN: dict[str, tuple[bytes, str]] = {
    "a.heic": (HEIC, "a HEIC file, .*pillow-heif"),
    "photo.jpg": (HEIC, "a HEIC file"),  # renamed
    "scan.dcm": (b"\0" * 128 + b"DICM" + b"\0" * 9, "a DICOM file: convert it"),
    "IM0001": (b"\0" * 128 + b"DICM" + b"\0" * 9, "a DICOM file"),
    "x.npy": (b"\x93NUMPY\x01\0", r"np\.load"),
    "x.svg": (b"<svg/>", "vector graphic"),
    "x.txt": (b"text", "^not an image$"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_files_have_a_reason_of_their_own(name: str, tmp_path: Path) -> None:
    content, said = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    Image.new("L", (8, 8)).save(tmp_path / "ok.png")
    (skipped,) = ub.data.folder(tmp_path, GRAY).skipped
    assert skipped[0].name == name
    assert re.search(said, skipped[1])


def test_heif_is_tried_only_where_pillow_reads_it() -> None:
    Image.init()
    assert set(image_files.readable_formats()) <= set(Image.OPEN)


@pytest.mark.parametrize("like", [GRAY, RGB])
def test_12_bits_in_16_are_12_bits_and_it_is_said(like: ub.Pixels, tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    with pytest.warns(UnboxedWarning, match="read as 12 bits, with 4095 as white"):
        x = read_image(tmp_path / "a.tif", like)
    torch.testing.assert_close(x, torch.from_numpy(ramp.astype(np.float32) / 4095).expand(like.shape))


def test_16_bits_are_16_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    torch.testing.assert_close(read_image(tmp_path / "a.tif", GRAY)[0], torch.from_numpy(ramp / np.float32(65535)))
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "black.tif")  # of either depth
    assert read_image(tmp_path / "black.tif", GRAY).max() == 0


def test_arrays_of_16_bits_are_as_files() -> None:
    box = ub.Box(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), GRAY)
    with pytest.warns(UnboxedWarning, match="12 bits"):
        assert box.validate_inputs(np.full((2, 8, 8), 4095, np.uint16)).max() == 1
    assert box.validate_inputs(np.full((2, 8, 8), 65535, np.uint16)).min() == 1


COLORS = (65535 * np.random.default_rng(0).random((8, 8, 3))).astype(np.uint16)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_color_tiffs_keep_their_depth(compression: Any, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", COLORS, photometric="rgb", compression=compression)
    wanted = torch.from_numpy(COLORS.astype(np.float32) / 65535).permute(2, 0, 1)
    torch.testing.assert_close(read_image(tmp_path / "a.tif", RGB), wanted)
    tifffile.imwrite(tmp_path / "b.tif", COLORS.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    torch.testing.assert_close(read_image(tmp_path / "b.tif", RGB), wanted)


def test_12_bit_color_is_not_dark(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", COLORS // 16, photometric="rgb")
    with pytest.warns(UnboxedWarning, match="12 bits"):
        x = read_image(tmp_path / "a.tif", RGB)
    torch.testing.assert_close(x, torch.from_numpy((COLORS // 16).astype(np.float32) / 4095).permute(2, 0, 1))


def test_16_bit_color_read_with_8_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", COLORS, photometric="rgb")
    monkeypatch.setattr(image_files, "_read_tiff", lambda path: None)  # a codec that is missing
    with pytest.warns(UnboxedWarning, match="16 bits per channel are read with 8"):
        x = read_image(tmp_path / "a.tif", RGB)
    torch.testing.assert_close(
        x, torch.from_numpy(COLORS.astype(np.float32) / 65535).permute(2, 0, 1), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colors_are_turned_upright(orientation: int) -> None:
    from PIL import ImageOps

    from unboxed.inputs.images import upright_levels

    small = (COLORS[:4, :6] // 257).astype(np.uint8)
    image = Image.fromarray(small)
    image.getexif()[274] = orientation
    turned = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(upright_levels(small, image), turned)


# -- images of another kind --------------------------------------------------------------------------------------------


def test_a_color_photo_for_a_gray_model_gets_a_note(tmp_path: Path) -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 500, 3), dtype=np.uint8).repeat(1, 0))
    photo = Image.merge("RGB", [photo.getchannel("R"), Image.new("L", photo.size, 20), Image.new("L", photo.size, 90)])
    photo.save(tmp_path / "photo.png")
    with pytest.warns(UnboxedWarning) as caught:
        ub.image(tmp_path / "photo.png", like=ub.Pixels((1, 28, 28)))
    said = [str(w.message) for w in caught]
    assert any("color images are made gray, as this model takes one channel (28x28)" in text for text in said)
    assert any("images are more than 16 times the 28x28 that this model takes" in text for text in said)
    with pytest.warns(UnboxedWarning, match="made gray"):
        ub.image(photo.resize((40, 40)), like=ub.Pixels((1, 28, 28)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_gray_images_in_any_mode_get_none(mode: str) -> None:
    x = ub.image(Image.new("L", (40, 30), 255).convert(mode), like=GRAY)
    torch.testing.assert_close(x, torch.ones(1, 1, 8, 8))


# -- a single image ----------------------------------------------------------------------------------------------------

LEVELS = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
ONE = torch.from_numpy(LEVELS.astype(np.float32) / 255).permute(2, 0, 1)[None]
SINGLE: dict[str, Any] = {
    "Pillow": lambda path: Image.fromarray(LEVELS),
    "array": lambda path: LEVELS,
    "channels first": lambda path: LEVELS.transpose(2, 0, 1),
    "floats": lambda path: LEVELS / 255,
    "tensor": lambda path: ONE[0],
    "path": lambda path: path,
    "text": str,
    "list": lambda path: [path],
    "batch": lambda path: ONE,
}


@pytest.mark.parametrize("form", SINGLE)
def test_an_image_in_any_form(form: str, tmp_path: Path) -> None:
    Image.fromarray(LEVELS).save(tmp_path / "a.PNG", format="PNG")
    torch.testing.assert_close(ub.image(SINGLE[form](tmp_path / "a.PNG"), like=RGB), ONE)


def test_an_image_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(DataError, match=r"a\.heic: a HEIC file"):
        ub.image(tmp_path / "a.heic", like=RGB)
    with pytest.raises(DataError, match=r"none\.png: there is no such file"):
        ub.image(tmp_path / "none.png", like=RGB)
    with pytest.raises(DataError, match=r"is a folder: name one image, or pass ub\.data\.folder"):
        ub.image(tmp_path, like=RGB)
    with pytest.raises(DataError, match="first or last"):
        ub.image(np.zeros((3, 3, 3)), like=ub.Pixels((3, 3, 3)))
    with pytest.raises(DataError, match="pass tensors or a Dataset of them"):
        ub.image(Image.new("RGBA", (8, 8)), like=ub.Pixels((4, 8, 8)))
    assert file_fault(tmp_path / "none.png") == "there is no such file"


def test_methods_of_any_size_keep_the_size_of_a_file(tmp_path: Path) -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 36), dtype=np.uint8))
    dream = ub.synthesis.deepdream(box, picture, ub.channel("conv1", 0), steps=1, octaves=1)
    assert dream.images.shape[-2:] == (40, 36)
