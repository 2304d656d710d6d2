"""Image files: formats, bit depths, and images of quite another kind than the model's."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, features
from torch import nn

import unboxed as ub
from unboxed.engine.read.sizes import validate_any_size
from unboxed.errors import DataError, InputError, UnboxedWarning
from unboxed.inputs import image_files
from unboxed.inputs.image_files import read_image, unreadable_file_reason

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


DARK = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)


@pytest.mark.parametrize("like", [GRAY, RGB])
def test_12_bits_in_16_are_12_bits_where_the_inputs_say_so(like: ub.Pixels, tmp_path: Path) -> None:
    Image.fromarray(DARK).save(tmp_path / "a.tif")
    x = read_image(tmp_path / "a.tif", replace(like, white=4095))
    torch.testing.assert_close(x, torch.from_numpy(DARK.astype(np.float32) / 4095).expand(like.shape))
    with pytest.warns(UnboxedWarning, match=r"read with 65535 as white.*say Pixels\(\.\.\., white=4095\)"):
        x = read_image(tmp_path / "a.tif", like)
    torch.testing.assert_close(x, torch.from_numpy(DARK.astype(np.float32) / 65535).expand(like.shape))


@pytest.mark.filterwarnings("ignore:16-bit images are read:unboxed.errors.UnboxedWarning")
@pytest.mark.parametrize("form", ["array", "tensor", "files", "any size"])
def test_white_does_not_depend_on_the_other_images(form: str, tmp_path: Path) -> None:
    """One dark image among bright ones has the values that it has alone."""
    images = np.stack([DARK, DARK * 16, DARK // 2])
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    box = ub.Box(model, GRAY, outputs="logits")
    read: dict[str, Callable[[slice], torch.Tensor]] = {
        "array": lambda rows: box.validate_inputs(images[rows]),
        "tensor": lambda rows: box.validate_inputs(torch.from_numpy(images[rows])[:, None]),
        "files": lambda rows: box.validate_inputs([tmp_path / f"{i}.png" for i in range(3)[rows]]),
        "any size": lambda rows: validate_any_size(box, [tmp_path / f"{i}.png" for i in range(3)[rows]], "a test"),
    }
    together = read[form](slice(0, 3))
    assert torch.equal(together, torch.cat([read[form](slice(i, i + 1)) for i in range(3)]))
    assert torch.equal(together[:2, 0], torch.from_numpy(images[:2].astype(np.float32) / np.float32(65535)))


def test_a_tiff_that_states_12_bits_has_12(tmp_path: Path) -> None:
    packed = np.zeros((8, 12), np.uint8)  # eight values of 12 bits per row
    packed[:, 0], packed[:, 1] = 0xFF, 0xF0
    fields = {256: 8, 257: 8, 258: 12, 259: 1, 262: 1, 273: 0, 277: 1, 278: 8, 279: packed.size}
    fields[273] = 8 + 2 + 12 * len(fields) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(header + packed.tobytes())
    x = read_image(tmp_path / "a.tif", GRAY)[0]
    assert x[:, 0].tolist() == [1.0] * 8
    assert x[:, 1:].max() == 0


def test_values_above_the_stated_white_are_refused() -> None:
    dim = replace(GRAY, white=4095)
    with pytest.raises(DataError, match=r"values up to 5000, and Pixels\(white=4095\)"):
        ub.image(np.full((8, 8), 5000, np.uint16), like=dim)
    assert "white=4095" in repr(dim)
    assert dim.as_image_pixels().white == 4095
    with pytest.raises(InputError, match="white"):
        replace(GRAY, white=70000)


def test_16_bits_are_16_bits(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    torch.testing.assert_close(read_image(tmp_path / "a.tif", GRAY)[0], torch.from_numpy(ramp / np.float32(65535)))
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "black.tif")  # of either depth
    assert read_image(tmp_path / "black.tif", GRAY).max() == 0


def test_arrays_of_16_bits_are_as_files() -> None:
    box = ub.Box(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)), GRAY)
    with pytest.warns(UnboxedWarning, match="12 bits"):
        assert box.validate_inputs(np.full((2, 8, 8), 4095, np.uint16)).max() == np.float32(4095 / 65535)
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
    x = read_image(tmp_path / "a.tif", replace(RGB, white=4095))
    torch.testing.assert_close(x, torch.from_numpy((COLORS // 16).astype(np.float32) / 4095).permute(2, 0, 1))


def test_16_bit_color_read_with_8_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "a.tif", COLORS, photometric="rgb")
    monkeypatch.setattr(image_files, "_read_tiff_values", lambda path: None)  # a codec that is missing
    with pytest.warns(UnboxedWarning, match="16 bits per channel are read with 8"):
        x = read_image(tmp_path / "a.tif", RGB)
    torch.testing.assert_close(
        x, torch.from_numpy(COLORS.astype(np.float32) / 65535).permute(2, 0, 1), atol=0.01, rtol=0
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_colors_are_turned_upright(orientation: int) -> None:
    from PIL import ImageOps

    from unboxed.inputs.images import apply_exif_orientation

    small = (COLORS[:4, :6] // 257).astype(np.uint8)
    image = Image.fromarray(small)
    image.getexif()[274] = orientation
    turned = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(apply_exif_orientation(small, image), turned)


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
    assert unreadable_file_reason(tmp_path / "none.png") == "there is no such file"


def test_methods_of_any_size_keep_the_size_of_a_file(tmp_path: Path) -> None:
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 36), dtype=np.uint8))
    dream = ub.synthesis.deepdream(box, picture, ub.channel("conv1", 0), steps=1, octaves=1)
    assert dream.images.shape[-2:] == (40, 36)


@pytest.mark.parametrize("name", ["~nobody-is-called-so/a.png", "a\0b.png", "x" * 300])
def test_a_name_that_no_file_can_have_is_refused_at_every_door(name: str) -> None:
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), RGB)
    doors: list[Any] = [
        lambda: ub.image(name, like=box), lambda: ub.attribution.gradient(box, name), lambda: box([name]),
        lambda: ub.data.folder(name, box), lambda: ub.data.table(name, box), lambda: ub.data.texts(name),
        lambda: box.with_model(box.model, classes=name), lambda: ub.robustness.calibration(box, name),
    ]  # fmt: skip
    for door in doors:
        with pytest.raises((InputError, DataError)):
            door()
