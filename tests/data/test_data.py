"""The data sets: what they hold, in which form and order."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from real_data import MNIST, PHOTOS, needs_mnist, needs_photos
from unboxed import data
from unboxed.data import idx, uci
from unboxed.errors import InputError
from unboxed.inputs.pixels import Pixels

GRAY, RGB = Pixels((1, 8, 8)), Pixels((3, 8, 8))


# ---------------------------------------------------------------- digits


def test_digits_are_the_1797_of_uci_in_both_parts_once():
    whole, train, test = (data.digits(split).tensors() for split in ("all", "train", "test"))
    assert whole.x.shape == (1797, 1, 28, 28)
    assert whole.x.dtype == torch.float32
    assert whole.y.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    parts = torch.cat([train.x, test.x]).flatten(1)
    assert torch.equal(parts.unique(dim=0), whole.x.flatten(1).unique(dim=0))
    assert len(parts) == 1797


def test_digits_hold_the_ink_that_was_counted():
    """Drawn without thinning, each block holds its count again."""
    share = torch.randint(0, 17, (5, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 16
    drawn = uci._bitmaps_from_ink_fractions(share)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(torch.nn.functional.avg_pool2d(drawn, uci.BLOCK_SIDE_PIXELS), share)


def test_digits_have_the_margins_and_the_center_of_mnist():
    x = data.digits().tensors().x[:, 0]
    assert 0 == x.min() < x.max() == 1
    where = torch.arange(28.0)
    mass = x.sum((1, 2))
    for axis in (1, 2):
        center = x.sum(axis) @ where / mass
        assert (center - 14).abs().max() < 0.55
        ink = (x > 0.1).any(axis)
        extent = 28 - ink.int().argmax(1) - ink.flip(1).int().argmax(1)
        assert extent.max() <= 20
    assert (x * 255 - (x * 255).round()).abs().max() < 1e-4  # 8-bit levels, as MNIST's


def test_digits_are_shown_upright_and_in_their_own_class():
    """Shrunk to 8x8 again, an image is like its original, and less so like that turned or mirrored."""
    from sklearn.datasets import load_digits

    counts, labels = load_digits(return_X_y=True)
    pixels, drawn_labels = uci._load_digits()
    assert drawn_labels.tolist() == labels.tolist()
    for i in (0, 7, 500, 1796):
        small = torch.nn.functional.adaptive_avg_pool2d(pixels[i, :, 4:24, 4:24].float(), 8)[0].numpy()
        original = counts[i].reshape(8, 8)
        others = original[::-1], original[:, ::-1], original.T
        like = [np.corrcoef(small.ravel(), other.ravel())[0, 1] for other in (original, *others)]
        assert like[0] == max(like) > 0.6


def test_digits_are_read_by_scikit_learn_where_their_file_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    by_file = uci._read_ink_counts_and_labels()
    monkeypatch.setattr(uci, "find_spec", lambda name: None)
    for ours, theirs in zip(by_file, uci._read_ink_counts_and_labels(), strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours == theirs).all()


@pytest.mark.parametrize("split", ["all", "train", "test"])
def test_first_digits_are_a_fair_sample(split):
    y = data.digits(split).first(300).y
    assert (y[1:] < y[:-1]).float().mean() > 0.3  # not sorted
    assert ((y[1:40] - y[:39]) % 10 == 1).float().mean() < 0.3  # nor in the file's order, 0 to 9 again and again
    expected = 300 / 10
    chi2 = ((y.bincount(minlength=10) - expected) ** 2 / expected).sum()
    assert chi2 < 21.7  # p > .01 with 9 degrees of freedom


def test_digits_split_is_stratified_fixed_and_follows_the_seed():
    share = data.digits("test").tensors().y.bincount() / data.digits().tensors().y.bincount()
    assert (share - 0.2).abs().max() < 0.01
    first = data.digits("test").first(50)
    assert torch.equal(first.x, data.digits("test").first(50).x)
    assert not torch.equal(first.y, data.digits("test", seed=1).first(50).y)


def test_digits_inputs_say_their_mean_and_spread():
    digits = data.digits()
    x = digits.tensors().x
    assert digits.inputs.mean == pytest.approx(x.mean().item(), abs=1e-3)
    assert digits.inputs.std == pytest.approx(x.std().item(), abs=1e-3)
    assert torch.equal(digits.inputs.check(x), x)


def test_what_is_taken_out_is_a_copy():
    digits = data.digits()
    x, y = digits.first(3)
    before = x.clone(), y.clone()
    x.zero_(), y.zero_()
    digits[0][0].zero_()
    assert torch.equal(data.digits().first(3).x, before[0])
    assert torch.equal(digits.first(3).y, before[1])


def test_every_data_set_works_with_a_data_loader():
    x, y = next(iter(DataLoader(data.digits(), batch_size=4)))
    assert torch.equal(x, data.digits().first(4).x)
    assert y.tolist() == data.digits().first(4).y.tolist()


# ---------------------------------------------------------------- MNIST


def write_idx(path: Path, array: np.ndarray, packed: bool = True) -> Path:
    body = (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )
    path.write_bytes(gzip.compress(body) if packed else body)
    return path


def own_set(root: Path, n: int = 6, shape=(5, 7), part: str = "train", packed: bool = True) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (n, *shape))
    end = ".gz" if packed else ""
    write_idx(root / f"{part}-images-idx3-ubyte{end}", images, packed)
    write_idx(root / f"{part}-labels-idx1-ubyte{end}", np.arange(n), packed)
    return images


@needs_mnist
def test_mnist_is_mnist():
    train, test = data.mnist("train", MNIST), data.mnist("test", MNIST)
    assert (len(train), len(test)) == (60000, 10000)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.stack([train[i][0] for i in range(3)]).shape == (3, 1, 28, 28)
    assert train._labels.bincount().tolist() == counts
    assert train.first(10).y.tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    x = test.tensors().x
    assert x.mean().item() == pytest.approx(0.1325, abs=1e-3)
    assert train.inputs == Pixels((1, 28, 28), 0.1307, 0.3081)
    assert train.name != test.name


@needs_mnist
def test_published_checksums_are_those_of_the_real_files():
    assert {p.name: idx.md5_checksum(p) for p in MNIST.glob("*.gz")} == dict(idx.MNIST_FILE_SET.md5)


@needs_mnist
def test_digits_have_about_the_ink_of_mnist():
    ours, theirs = data.digits().tensors().x, data.mnist("test", MNIST).tensors().x
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=0.15)
    assert (ours > 0.98).float().mean().item() == pytest.approx((theirs > 0.98).float().mean().item(), rel=0.2)
    for x in (ours, theirs):  # twice the ink by its outline: how wide the strokes are
        outline = x.diff(dim=2).abs().sum((1, 2, 3)) + x.diff(dim=3).abs().sum((1, 2, 3))
        assert 1.9 < (2 * x.sum((1, 2, 3)) / outline).mean() < 2.6


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("train", [True, False])
def test_idx_files_of_ones_own_are_taken(tmp_path, packed, train):
    images = own_set(tmp_path, part="train" if train else "t10k", packed=packed)
    got = data.mnist("train" if train else "test", tmp_path)
    x, y = got.tensors()
    assert torch.equal(x[:, 0] * 255, torch.from_numpy(images).float())
    assert y.tolist() == list(range(6))
    assert got.inputs.shape == (1, 5, 7)
    assert got.classes == tuple("0123456789")


def test_own_set_with_more_classes_names_them_by_number(tmp_path):
    own_set(tmp_path, n=12)
    assert data.fashion_mnist("train", tmp_path).classes == tuple(map(str, range(12)))


def test_fashion_mnist_knows_its_classes(tmp_path):
    own_set(tmp_path)
    got = data.fashion_mnist("train", tmp_path)
    assert got.classes[0] == "T-shirt/top"
    assert got.classes[9] == "ankle boot"
    assert got.name == "fashion-mnist (train)"


def test_without_root_the_users_cache_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("pooch.os_cache", lambda name: tmp_path / name)
    (tmp_path / "unboxed" / "mnist").mkdir(parents=True)
    own_set(tmp_path / "unboxed" / "mnist")
    assert len(data.mnist("train")) == 6


# ---------------------------------------------------------------- folders


def picture(path: Path, color=(255, 0, 0), size=(8, 8), **save) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **save)
    return path


def halves(left, right, size=(8, 8), mode="RGB") -> Image.Image:
    image = Image.new(mode, size, left)
    image.paste(right, (size[0] // 2, 0, size[0], size[1]))
    return image


def only(path: Path, image: Image.Image, like: Pixels, **save) -> torch.Tensor:
    image.save(path / "one.png", **save)
    return data.folder(path, like=like)[0][0]


def test_class_folders_become_labels(tmp_path):
    for name, color in (("cat", (255, 0, 0)), ("dog", (0, 255, 0))):
        for i in range(3):
            picture(tmp_path / name / f"{i}.png", color)
    got = data.folder(tmp_path, like=RGB)
    x, y = got.tensors()
    assert got.classes == ("cat", "dog")
    assert got.inputs is RGB
    assert sorted(y.tolist()) == [0, 0, 0, 1, 1, 1]
    assert torch.equal(x[:, 1, 0, 0].long(), y)  # green is a dog
    assert got.skipped == []
    assert got.name == tmp_path.name


def test_classes_are_matched_by_name_whatever_their_order_and_spelling(tmp_path):
    picture(tmp_path / "Egyptian_Cat" / "a.png")
    picture(tmp_path / "hot-dog" / "b.png")
    got = data.folder(tmp_path, like=RGB, classes=["hot dog", "tabby", "Egyptian cat"])
    assert got.classes == ("hot dog", "tabby", "Egyptian cat")
    assert {p.name: got[i][1] for i, p in enumerate(got.paths)} == {"a.png": 2, "b.png": 0}


def test_a_folder_whose_name_is_exact_wins_over_a_like_one(tmp_path):
    picture(tmp_path / "Cat" / "a.png")
    assert data.folder(tmp_path, like=RGB, classes=["cat", "Cat"])[0][1] == 1


def test_first_of_class_folders_are_of_all_classes(tmp_path):
    for name, n in (("a", 12), ("b", 4), ("c", 8)):
        for i in range(n):
            picture(tmp_path / name / f"{i:02}.png")
    got = data.folder(tmp_path, like=RGB)
    assert got.first(6).y.bincount().tolist() == [3, 1, 2]
    assert got.first(12).y.bincount().tolist() == [6, 2, 4]


def test_flat_folder_has_no_labels(tmp_path):
    for i in (2, 0, 1):
        picture(tmp_path / f"{i}.png", (i, 0, 0))
    got = data.folder(tmp_path, like=RGB, classes=["a", "b"])
    x, y = got.tensors()
    assert y is None
    assert [round(v) for v in (x[:, 0, 0, 0] * 255).tolist()] == [0, 1, 2]  # by name
    assert got.classes == ("a", "b")
    assert got[0][1] == -1


def test_images_deeper_in_a_class_folder_are_of_that_class(tmp_path):
    picture(tmp_path / "cat" / "2024" / "may" / "a.png")
    picture(tmp_path / "dog" / "b.png")
    got = data.folder(tmp_path, like=RGB)
    assert got.first(9).y.tolist() == [0, 1]


def test_hidden_files_and_litter_are_not_worth_a_word(tmp_path):
    picture(tmp_path / "A.PNG")
    picture(tmp_path / "B.JPeG")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    picture(tmp_path / ".thumbnails" / "small.png")
    picture(tmp_path / "__MACOSX" / "copy.png")
    got = data.folder(tmp_path, like=RGB)
    assert [p.name for p in got.paths] == ["A.PNG", "B.JPeG"]
    assert got.skipped == []


def test_one_empty_class_keeps_its_number_and_is_listed(tmp_path):
    picture(tmp_path / "a" / "1.png")
    (tmp_path / "b").mkdir()
    picture(tmp_path / "c" / "1.png")
    got = data.folder(tmp_path, like=RGB)
    assert got.classes == ("a", "b", "c")
    assert got.first(9).y.tolist() == [0, 2]
    assert [(p.name, why) for p, why in got.skipped] == [("b", "a class folder without files")]


def test_loose_files_next_to_class_folders_are_listed(tmp_path):
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "loose.png")
    got = data.folder(tmp_path, like=RGB)
    assert len(got) == 1
    assert "without a class" in {p.name: why for p, why in got.skipped}["loose.png"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    turn = Image.Transpose
    undo = {
        1: None,
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = only(tmp_path, stored, GRAY, exif=exif)
    assert torch.equal(got[0] * 255, torch.from_numpy(np.array(upright)).float())


@pytest.mark.parametrize(("size", "like"), [((30, 10), (3, 10, 10)), ((10, 30), (3, 10, 10)), ((40, 20), (3, 5, 10))])
def test_short_side_is_resized_and_the_center_kept(tmp_path, size, like):
    image = Image.new("RGB", size, (255, 0, 0))
    side = min(size[0] / like[2], size[1] / like[1])
    width, height = like[2] * side, like[1] * side
    left, top = (size[0] - width) / 2, (size[1] - height) / 2
    image.paste((0, 255, 0), (round(left), round(top), round(left + width), round(top + height)))
    got = only(tmp_path, image, Pixels(like))
    assert got.shape == like
    assert torch.equal(got, torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1).expand(like))


def test_shrinking_is_antialiased(tmp_path):
    """A fine checkerboard becomes gray, not whichever pixels a grid hits."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    got = only(tmp_path, Image.fromarray(board), GRAY)
    assert (got - 0.5).abs().max() < 0.02


def test_gray_or_rgb_as_the_model_wants(tmp_path):
    picture(tmp_path / "red.png", (255, 0, 0))
    with pytest.warns(UserWarning, match=r"color images are made gray, as this model takes one channel \(8x8\)"):
        gray = data.folder(tmp_path, like=GRAY)[0][0]
    assert gray.shape == (1, 8, 8)
    assert gray.mean().item() == pytest.approx(0.299, abs=2e-3)
    rgb = only(tmp_path, Image.new("L", (8, 8), 51), RGB)
    assert torch.equal(rgb, torch.full((3, 8, 8), 0.2))


@pytest.mark.parametrize("like", [GRAY, RGB])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(tmp_path, mode, like):
    clear = halves((0, 0, 0, 0), (0, 0, 0, 255), mode="RGBA")
    got = only(tmp_path, clear if mode == "RGBA" else clear.convert(mode), like)
    assert torch.equal(got, halves_tensor(1.0, 0.0, like))


def test_half_transparent_is_half_white(tmp_path):
    got = only(tmp_path, Image.new("RGBA", (8, 8), (0, 0, 0, 127)), RGB)
    assert got.mean().item() == pytest.approx(128 / 255, abs=3e-3)


def test_transparent_color_of_an_opaque_mode_shows_white(tmp_path):
    got = only(tmp_path, halves((1, 2, 3), (0, 0, 0)), RGB, transparency=(1, 2, 3))
    assert torch.equal(got, halves_tensor(1.0, 0.0, RGB))


def halves_tensor(left: float, right: float, like: Pixels) -> torch.Tensor:
    x = torch.full(like.shape, left)
    x[..., 4:] = right
    return x


@pytest.mark.parametrize("like", [GRAY, RGB])
def test_16_bit_png_keeps_its_depth(tmp_path, like):
    values = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    got = only(tmp_path, Image.fromarray(values), like)
    assert got.shape == like.shape
    for channel in got:
        torch.testing.assert_close(channel, torch.from_numpy(values / 65535).float())


def test_16_bit_images_are_resized_with_antialiasing(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 65535).astype(np.uint16)
    assert (only(tmp_path, Image.fromarray(board), GRAY) - 0.5).abs().max() < 0.02


@pytest.mark.parametrize(("mode", "color"), [("1", 1), ("CMYK", (0, 0, 0, 0)), ("YCbCr", (255, 128, 128)), ("F", 1.0)])
def test_rarer_modes_are_white_where_they_are_white(tmp_path, mode, color):
    Image.new(mode, (8, 8), color).save(tmp_path / "a.tiff")
    assert (data.folder(tmp_path, like=RGB)[0][0] - 1).abs().max() < 0.01


def test_images_of_several_frames_show_the_first(tmp_path):
    """Telephones save such JPEGs (MPO)."""
    frames = [Image.new("RGB", (8, 8), color) for color in ("white", "black")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    assert (data.folder(tmp_path, like=RGB).tensors().x == 1).all()


@needs_photos
def test_photos_fit_an_imagenet_model():
    like = Pixels((3, 224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    got = data.folder(PHOTOS, like=like)
    x, y = got.tensors()
    assert x.shape == (16, 3, 224, 224)
    assert y is None
    assert got.skipped == []
    assert torch.equal(like.check(x), x)


# ---------------------------------------------------------------- anybody's Dataset


class Listed(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


RAMP = torch.arange(30.0).view(5, 6) / 51  # (H, W), in steps of 5/255
BYTES = (RAMP * 255).round().byte()


@pytest.mark.parametrize(
    "image",
    [
        RAMP,
        RAMP[None],
        RAMP.double(),
        BYTES,
        BYTES[None],
        RAMP.numpy(),
        RAMP.numpy()[None],
        RAMP.numpy()[..., None],
        BYTES.numpy(),
        BYTES.numpy()[..., None],
        BYTES.numpy().astype(np.uint16) * 257,
        RAMP.numpy().astype(">f8"),
        np.asfortranarray(RAMP.numpy()),
        Image.fromarray(BYTES.numpy()),
    ],
    ids=lambda v: f"{type(v).__name__} {getattr(v, 'dtype', '')} {tuple(getattr(v, 'shape', ()))}",
)
def test_every_form_of_an_image_means_the_same(image):
    x, y = data.first(Listed((image, 3)), 5)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, RAMP[None, None])
    assert y.tolist() == [3]


def test_color_images_channels_last_or_first():
    color = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(0))
    for image in (color, color.numpy(), color.permute(1, 2, 0).numpy()):
        torch.testing.assert_close(data.first([(image, 0)], 1).x[0], color)
    byte = (color * 255).round().byte()
    got = data.first([(Image.fromarray(byte.permute(1, 2, 0).numpy()), 0)], 1).x[0]
    torch.testing.assert_close(got, byte / 255)


@pytest.mark.parametrize("label", [4, torch.tensor(4), np.int64(4), torch.tensor([4]), np.array(4)])
def test_every_form_of_a_label_means_the_same(label):
    assert data.first([(RAMP, label)], 1).y.tolist() == [4]


@pytest.mark.parametrize("item", [RAMP, RAMP.numpy(), (RAMP,), [RAMP], (RAMP, None), (RAMP, -1)])
def test_label_may_be_absent(item):
    batch = data.first(Listed(item, item), 2)
    assert batch.y is None
    assert batch.x.shape == (2, 1, 5, 6)
    assert data.wrap(Listed(item))[0][1] == -1


def test_first_takes_what_there_is():
    many = TensorDataset(torch.rand(7, 1, 3, 3), torch.arange(7))
    assert data.first(many, 3).y.tolist() == [0, 1, 2]
    assert data.first(many, 100).y.tolist() == list(range(7))
    assert data.first(Subset(many, [5, 2]), 100).y.tolist() == [5, 2]
    assert data.first(data.digits(), 3).x.shape == (3, 1, 28, 28)
    assert len(data.digits().first(5000).x) == 1797


def test_first_of_an_iterable_data_set():
    class Stream(IterableDataset):
        def __iter__(self):
            return ((RAMP, i) for i in range(10**9))

    assert data.first(Stream(), 3).y.tolist() == [0, 1, 2]


def test_wrap_knows_classes_and_inputs():
    many = Listed((RAMP, 0), (RAMP, 1))
    many.classes = ["cat", "dog"]
    got = data.wrap(many)
    assert got.classes == ("cat", "dog")
    assert got.inputs == Pixels((1, 5, 6))
    assert got.name == "Listed"
    assert len(got) == 2
    named = data.wrap(got, classes=("a", "b"), name="mine")
    assert (named.classes, named.name) == (("a", "b"), "mine")
    assert data.wrap(got) is got


def test_wrap_undoes_a_normalization():
    inputs = Pixels((3, 3, 4), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    x = torch.rand(5, 3, 3, 4, generator=torch.Generator().manual_seed(0))
    got = data.wrap(TensorDataset(inputs.encode(x)), decode=inputs.decode)
    torch.testing.assert_close(got.tensors().x, x)
    torch.testing.assert_close(got[1][0], x[1])


def test_wrap_fits_pillow_images_of_many_sizes():
    many = Listed((Image.new("L", (9, 5)), 0), (Image.new("RGBA", (30, 40)), 1))
    assert data.wrap(many, like=RGB).tensors().x.shape == (2, 3, 8, 8)


def test_a_pair_of_tensors_is_a_data_set():
    batch = data.Batch(torch.rand(4, 1, 3, 3), torch.arange(4))
    again = data.wrap(batch).tensors()
    assert torch.equal(again.x, batch.x)
    assert torch.equal(again.y, batch.y)


def test_wrapping_leaves_the_callers_tensors_alone():
    x = torch.rand(4, 1, 3, 3)
    before = x.clone()
    data.first(TensorDataset(x), 4).x.zero_()
    data.wrap(TensorDataset(x))[0][0].zero_()
    assert torch.equal(x, before)


def test_public_names_are_all_there():
    assert all(hasattr(data, name) for name in data.__all__)
    assert repr(data.digits("test")) == "InMemory('digits (test)', 359 images 1x28x28, 10 classes)"


def test_splits_are_asked_for_in_one_way(tmp_path):
    """In Python and, behind a colon, on the command line: digits, MNIST and Fashion-MNIST alike; all is the default."""
    from unboxed import loading

    own_set(tmp_path), own_set(tmp_path, part="t10k", n=4)
    for name, load in (("mnist", data.mnist), ("fashion-mnist", data.fashion_mnist)):
        for split, n in (("train", 6), ("test", 4), ("all", 10)):
            assert len(load(split, tmp_path)) == n
            spec = name if split == "all" else f"{name}:{split}"
            opened = loading.data(spec, root=tmp_path)
            assert len(opened) == n
            assert opened.name == load(split, root=tmp_path).name
        with pytest.raises(InputError, match=f"{name} come as 'all', 'train' or 'test'; got 'tst'"):
            load("tst")
        with pytest.raises(InputError, match="name a folder as root="):
            load(tmp_path)
    with pytest.raises(InputError, match="digits come as 'all', 'train' or 'test'; got 'tst'"):
        data.digits("tst")
