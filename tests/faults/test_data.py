"""Bad data: each a clear error or a listed skip; downloads are cut, wrong or impossible."""

import gzip
import hashlib
import os
import re
import struct
import warnings
import zlib
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pooch
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from unboxed import data
from unboxed.data import download, folders, idx
from unboxed.errors import DataError, InputError, WriteError
from unboxed.inputs.features import Features
from unboxed.inputs.pixels import Pixels

RGB = Pixels((3, 8, 8))
GOOD = torch.full((1, 3, 3), 0.5)


# ---------------------------------------------------------------- numbers and settings


@pytest.mark.parametrize("n", [0, -1, -1000, 2.5, "3", None])
def test_first_refuses_what_is_no_number_of_examples(n):
    for take in (data.digits().first, lambda n: data.first([(GOOD, 0)], n)):
        with pytest.raises(InputError, match="n must be"):
            take(n)


def test_digits_have_three_splits():
    with pytest.raises(InputError, match="'train' or 'test'; got 'valid'"):
        data.digits("valid")


# ---------------------------------------------------------------- IDX files


def packed(shape: tuple[int, ...], body: bytes, kind: int = 8) -> bytes:
    return bytes((0, 0, kind, len(shape))) + struct.pack(f">{len(shape)}I", *shape) + body


IMAGES, LABELS = packed((4, 2, 2), bytes(range(16))), packed((4,), bytes(range(4)))


def put(root: Path, images: bytes = IMAGES, labels: bytes = LABELS, end: str = ".gz") -> Path:
    squeeze = gzip.compress if end else bytes
    (root / f"train-images-idx3-ubyte{end}").write_bytes(squeeze(images))
    (root / f"train-labels-idx1-ubyte{end}").write_bytes(squeeze(labels))
    return root


def test_sound_files_are_read(tmp_path):
    assert data.mnist("train", put(tmp_path)).first(4).y.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("end", [".gz", ""])
@pytest.mark.parametrize(
    "images",
    [
        IMAGES[:-1],
        IMAGES[:10],
        IMAGES[:2],
        b"",
        IMAGES + b"x",
        packed((4, 2, 2), bytes(16), kind=9),
        LABELS,
        b"<html>404</html>",
        packed((0, 2, 2), b""),
        packed((2**31, 2**31, 2**31), b""),
    ],
    ids=["one byte short", "short header", "two bytes", "empty", "long", "floats", "labels", "page", "none", "giant"],
)
def test_broken_idx_is_named(tmp_path, images, end):
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        data.mnist("train", put(tmp_path, images, end=end))


@pytest.mark.parametrize("keep", [3, 15, 30, -1, -5])
def test_truncated_gzip_is_named(tmp_path, keep):
    path = put(tmp_path) / "train-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz.*(corrupt|not an IDX)"):
        data.mnist("train", tmp_path)


def test_flipped_bytes_in_gzip_are_found(tmp_path):
    path = put(tmp_path) / "train-images-idx3-ubyte.gz"
    whole = bytearray(path.read_bytes())
    whole[-8] ^= 0xFF  # the stored checksum
    path.write_bytes(whole)
    with pytest.raises(DataError, match="corrupt"):
        data.mnist("train", tmp_path)


def test_as_many_labels_as_images(tmp_path):
    with pytest.raises(DataError, match="4 images but 3 labels"):
        data.mnist("train", put(tmp_path, labels=packed((3,), bytes(3))))


# ---------------------------------------------------------------- downloads


class Server:
    """A mirror on this machine with the faults that a test sets."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.cuts: list[int] = []  # after how many bytes to hang up, one a request
        self.encoding = ""
        self.sends_length = True
        self.asked: list[str] = []
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.thread = Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def handler(server) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.asked.append(self.path[1:])
                body = server.files.get(self.path[1:], b"")
                if not body:
                    self.send_error(404)
                    return
                self.send_response(200)
                if server.sends_length:
                    self.send_header("Content-Length", str(len(body)))
                if server.encoding:
                    self.send_header("Content-Encoding", server.encoding)
                self.end_headers()
                self.wfile.write(body[: server.cuts.pop(0) if server.cuts else None])

            def log_message(self, *_: object) -> None: ...

        return Handler


BODY = bytes(np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8))
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = Server({"f.gz": BODY})
    yield server
    server.close()


@pytest.fixture
def nowhere(monkeypatch):
    """An address without a server."""
    monkeypatch.setenv("no_proxy", "*")
    server = Server({})
    server.close()
    return server.url


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_download_is_whole_and_shows_its_progress_on_stderr(server, tmp_path, capsys):
    download.download_from_first_mirror([server.url + "f.gz"], tmp_path / "f.gz", MD5)
    assert (tmp_path / "f.gz").read_bytes() == BODY
    assert names(tmp_path) == ["f.gz"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "f.gz" in err
    download.download_from_first_mirror([server.url + "f.gz"], tmp_path / "again.gz", MD5, quiet=True)
    assert capsys.readouterr().err == ""


def test_a_cut_download_leaves_nothing_and_the_next_mirror_is_tried(server, tmp_path):
    server.cuts = [100_000]
    with pytest.raises(download.DownloadError, match="the connection was cut"):
        download.download_from_first_mirror([server.url + "f.gz"], tmp_path / "f.gz", MD5, quiet=True)
    assert names(tmp_path) == []
    server.cuts = [50_000]
    download.download_from_first_mirror([server.url + "f.gz"] * 2, tmp_path / "f.gz", MD5, quiet=True)
    assert (tmp_path / "f.gz").read_bytes() == BODY
    assert names(tmp_path) == ["f.gz"]


def test_a_wrong_file_that_was_there_is_replaced(server, tmp_path):
    (tmp_path / "f.gz").write_bytes(BODY[:100])
    download.download_from_first_mirror([server.url + "f.gz"], tmp_path / "f.gz", MD5, quiet=True)
    assert (tmp_path / "f.gz").read_bytes() == BODY


def test_a_packed_file_stays_packed(server, tmp_path):
    """Servers say of `.gz` files that they are text in transfer encoding gzip."""
    packed_body = gzip.compress(BODY)
    server.files["p.gz"], server.encoding = packed_body, "gzip"
    download.download_from_first_mirror(
        [server.url + "p.gz"], tmp_path / "p.gz", hashlib.md5(packed_body).hexdigest(), quiet=True
    )
    assert (tmp_path / "p.gz").read_bytes() == packed_body


def test_a_server_that_names_no_length(server, tmp_path, capsys):
    server.sends_length = False
    download.download_from_first_mirror([server.url + "f.gz"], tmp_path / "f.gz", MD5)
    assert (tmp_path / "f.gz").read_bytes() == BODY
    assert "f.gz" in capsys.readouterr().err


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(download.DownloadError, match=f"wrong checksum: wanted md5 00, got {MD5}"):
        download.download_from_first_mirror([server.url + "f.gz"], tmp_path / "f.gz", "00", quiet=True)
    assert names(tmp_path) == []


def test_the_next_mirror_is_tried(server, nowhere, tmp_path):
    server.files["bad.gz"] = b"bad"
    failing = [nowhere + "f.gz", server.url + "absent.gz", server.url + "bad.gz"]
    with pytest.raises(download.DownloadError) as caught:
        download.download_from_first_mirror(failing, tmp_path / "f.gz", MD5, quiet=True)
    for url, reason in zip(
        failing, ("no connection: Connection refused", "the server says 404", "wrong checksum"), strict=True
    ):
        assert re.search(f"{re.escape(url)}: .*{reason}", str(caught.value))
    urls = [*failing, server.url + "f.gz"]
    download.download_from_first_mirror(urls, tmp_path / "f.gz", MD5, quiet=True)
    assert (tmp_path / "f.gz").read_bytes() == BODY


def test_a_server_without_end_is_left(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_DOWNLOAD_BYTES", 100_000)
    with pytest.raises(download.DownloadError, match="larger than"):
        download.download_from_first_mirror([server.url + "f.gz"], tmp_path / "f.gz", MD5, quiet=True)
    assert names(tmp_path) == []


def test_a_server_without_end_that_names_no_length(server, tmp_path, monkeypatch):
    server.sends_length = False
    test_a_server_without_end_is_left(server, tmp_path, monkeypatch)


def test_a_full_disk_is_said_once_and_is_no_fault_of_the_mirror(server, tmp_path, monkeypatch):
    """The disk is /dev/full where there is one, which is always full."""
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("there is no /dev/full here")

    @contextmanager
    def on_a_full_disk(path: str):
        yield str(full)

    monkeypatch.setattr("pooch.core.temporary_file", on_a_full_disk)
    with pytest.raises(WriteError, match=r"f\.gz: No space left"):
        download.download_from_first_mirror([server.url + "f.gz"] * 2, tmp_path / "f.gz", MD5, quiet=True)
    assert len(server.asked) == 1
    assert names(tmp_path) == []


def test_a_folder_that_can_not_be_written(server, tmp_path):
    (tmp_path / "f").write_text("a file, no folder")
    with pytest.raises(WriteError, match=r"f\.gz"):
        download.download_from_first_mirror([server.url + "f.gz"], tmp_path / "f" / "f.gz", MD5, quiet=True)


def test_the_callers_log_of_pooch_is_as_before(server, tmp_path):
    logger = pooch.get_logger()
    before = logger.level
    download.download_from_first_mirror([server.url + "f.gz"], tmp_path / "f.gz", MD5, quiet=True)
    assert logger.level == before


@pytest.fixture
def published(server, monkeypatch):
    """MNIST as a mirror of ours publishes it."""
    files = {name: gzip.compress(IMAGES if "images" in name else LABELS) for name in idx.MNIST_FILE_SET.md5}
    server.files |= files
    md5 = {name: hashlib.md5(body).hexdigest() for name, body in files.items()}
    monkeypatch.setattr(idx, "MNIST_FILE_SET", replace(idx.MNIST_FILE_SET, mirrors=(server.url,), md5=md5))
    return server


def test_mnist_downloads_what_is_asked_for_once(published, tmp_path):
    root = tmp_path / "new" / "mnist"
    assert len(data.mnist("test", root, quiet=True)) == 4
    assert names(root) == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    data.mnist("test", root)
    assert len(published.asked) == 2


def test_mnist_downloads_only_what_is_missing(published, tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(published.files["train-images-idx3-ubyte.gz"])
    data.mnist("train", tmp_path, quiet=True)
    assert published.asked == ["train-labels-idx1-ubyte.gz"]


def test_own_images_get_no_published_labels(published, tmp_path):
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(IMAGES[:-1] + b"x"))
    with pytest.raises(DataError, match=r"no train-labels-idx1-ubyte\.gz; put that there too"):
        data.mnist("train", tmp_path, quiet=True)
    assert published.asked == []


def test_offline_says_which_files_to_put_where(nowhere, tmp_path, monkeypatch):
    monkeypatch.setattr(idx, "MNIST_FILE_SET", replace(idx.MNIST_FILE_SET, mirrors=(nowhere,)))
    with pytest.raises(DataError) as caught:
        data.mnist("train", tmp_path / "here", quiet=True)
    said = str(caught.value)
    for part in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", str(tmp_path / "here"), nowhere, "root="):
        assert part in said
    assert "t10k" not in said


def test_a_tampered_mirror_is_refused(published, tmp_path):
    published.files["train-labels-idx1-ubyte.gz"] = gzip.compress(LABELS[:-1] + b"x")
    with pytest.raises(DataError, match="wrong checksum"):
        data.mnist("train", tmp_path, quiet=True)
    assert names(tmp_path) == ["train-images-idx3-ubyte.gz"]


def test_root_that_is_a_file(published, tmp_path):
    (tmp_path / "f").write_text("x")
    with pytest.raises(WriteError, match="--root"):
        data.mnist("train", tmp_path / "f", quiet=True)


# ---------------------------------------------------------------- folders


def picture(path: Path, size=(16, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def cut(path: Path, keep: float = 0.6) -> Path:
    whole = picture(path).read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    return path


def giant_png(path: Path, side: int = 60_000) -> Path:
    """A header that claims 3,600 megapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))))
    return path


def why(got: data.Folder) -> dict[str, str]:
    assert len({p for p, _ in got.skipped}) == len(got.skipped)  # each once
    return {p.name: reason for p, reason in got.skipped}


def test_what_is_no_image_is_listed_at_once(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.png").touch()
    (tmp_path / "drawing.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "short.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing.png")
    os.mkfifo(tmp_path / "pipe.png")
    giant_png(tmp_path / "bomb.png")
    got = data.folder(tmp_path, like=RGB)
    assert [p.name for p in got.paths] == ["good.png"]
    assert why(got).keys() == {
        "notes.txt", "empty.png", "drawing.eps", "short.png", "gone.png", "pipe.png", "bomb.png",
    }  # fmt: skip
    assert why(got)["notes.txt"] == why(got)["drawing.eps"] == why(got)["empty.png"] == "not an image"
    assert why(got)["gone.png"] == "a link to nothing"
    assert why(got)["pipe.png"] == "not a regular file"
    assert "bomb" in why(got)["bomb.png"]


def test_a_bomb_that_pillow_only_warns_of_is_skipped_too(tmp_path, monkeypatch):
    picture(tmp_path / "big.png", (12, 12))
    picture(tmp_path / "small.png", (4, 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 144 pixels: a warning; more than 200 would be an error
    before = warnings.filters[:]
    got = data.folder(tmp_path, like=RGB)
    assert [p.name for p in got.paths] == ["small.png"]
    assert "bomb" in why(got)["big.png"]
    assert warnings.filters == before


@pytest.mark.parametrize("end", [".png", ".jpg", ".gif", ".webp", ".bmp", ".tiff"])
def test_a_truncated_image_is_passed_over_and_listed(tmp_path, end):
    cut(tmp_path / f"b{end}")
    picture(tmp_path / "a.png")
    picture(tmp_path / "c.png")
    got = data.folder(tmp_path, like=RGB)
    assert got.first(2).x.shape == (2, 3, 8, 8)
    assert len(got.tensors().x) == 2
    assert why(got).keys() == {f"b{end}"}


def test_random_damage_never_ends_a_run(tmp_path):
    random = np.random.default_rng(0)
    for i, end in enumerate([".png", ".jpg", ".gif", ".webp", ".bmp", ".tiff", ".ppm", ".jp2"] * 6):
        body = bytearray(picture(tmp_path / f"{i}{end}").read_bytes())
        for at in random.integers(0, len(body), 8):
            body[at] = random.integers(256)
        (tmp_path / f"{i}{end}").write_bytes(body)
    picture(tmp_path / "good.png")
    got = data.folder(tmp_path, like=RGB)
    x, _ = got.tensors()
    assert len(x) + len(why(got)) == 49
    assert len(why(got)) > 5
    assert torch.equal(RGB.check(x), x)


def test_a_broken_image_is_decoded_once_and_a_sound_one_once_a_taking(tmp_path, monkeypatch):
    cut(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    decoded = []
    files = folders.image_files
    read = files.read_image
    monkeypatch.setattr(files, "read_image", lambda path, like: decoded.append(path.name) or read(path, like))
    got = data.folder(tmp_path, like=RGB)
    assert decoded == []
    got.first(1), got.first(1)
    assert decoded == ["a.png", "b.png", "b.png"]


def test_a_broken_image_asked_for_by_number_is_an_error_that_says_what_to_do(tmp_path):
    cut(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    got = data.folder(tmp_path, like=RGB)
    for _ in range(2):
        with pytest.raises(DataError, match=r"a\.png: broken image.*\.first"):
            got[0]
    assert got[1][0].shape == (3, 8, 8)
    assert len(why(got)) == 1


def test_a_data_loader_passes_over_broken_images(tmp_path):
    cut(tmp_path / "b.png")
    for name in "acd":
        picture(tmp_path / f"{name}.png")
    sizes = [len(x) for x, _ in DataLoader(data.folder(tmp_path, like=RGB), batch_size=2)]
    assert sizes == [1, 2]
    for name in "acd":
        cut(tmp_path / f"{name}.png")
    with pytest.raises(DataError, match="none of the 2 images"):
        next(iter(DataLoader(data.folder(tmp_path, like=RGB), batch_size=2)))


def test_all_broken_is_an_error(tmp_path):
    cut(tmp_path / "a.png")
    with pytest.raises(DataError, match="no image that can be read"):
        data.folder(tmp_path, like=RGB).first(3)


def test_nothing_in_the_folder(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        data.folder(tmp_path, like=RGB)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"no image that can be read \(a\.txt: not an image\)"):
        data.folder(tmp_path, like=RGB)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="is empty"):
        data.folder(tmp_path, like=RGB)


def test_wrong_paths(tmp_path):
    picture(tmp_path / "pets" / "a.png")
    with pytest.raises(DataError, match=r"no folder .*petz; did you mean '.*pets'"):
        data.folder(tmp_path / "petz", like=RGB)
    with pytest.raises(DataError, match=r"no folder"):
        data.folder(tmp_path / "x" / "y" / "z", like=RGB)
    with pytest.raises(DataError, match=r"a\.png is a file; wanted the folder .*pets"):
        data.folder(tmp_path / "pets" / "a.png", like=RGB)


@pytest.mark.parametrize("like", [Features(("a", "b")), Pixels((4, 8, 8)), (3, 8, 8)])
def test_like_that_no_image_can_become(tmp_path, like):
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"like|this one takes Features"):
        data.folder(tmp_path, like=like)


def test_unknown_classes_are_listed_with_the_nearest_names(tmp_path):
    for name in ("kat", "dgo", "dog", "zebra"):
        picture(tmp_path / name / "a.png")
    with pytest.raises(DataError) as caught:
        data.folder(tmp_path, like=RGB, classes=("cat", "dog", "horse"))
    said = str(caught.value)
    assert said.startswith("3 of the 4 subfolders")
    assert "(dgo, kat, zebra) are not among the model's 3 classes (cat, dog, horse)" in said
    assert "'dgo' is nearest to 'dog', 'kat' is nearest to 'cat'" in said


def test_a_folder_that_fits_two_classes(tmp_path):
    picture(tmp_path / "crane" / "a.png")
    with pytest.raises(DataError, match=r"'crane' fits 2 classes: the numbers \[0, 2\]"):
        data.folder(tmp_path, like=RGB, classes=("crane", "dog", "crane"))


def test_links_that_run_in_circles(tmp_path):
    picture(tmp_path / "cat" / "a.png")
    picture(tmp_path / "dog" / "b.png")
    (tmp_path / "cat" / "up").symlink_to(tmp_path)
    (tmp_path / "cat" / "self").symlink_to(tmp_path / "cat")
    (tmp_path / "again").symlink_to(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    got = data.folder(tmp_path, like=RGB)
    assert [p.relative_to(tmp_path).as_posix() for p in got.paths] == ["cat/a.png", "dog/b.png"]
    assert got.classes == ("cat", "dog")
    assert why(got)["up"] == why(got)["self"] == "leads to a folder that was read already"


def test_float_images_without_a_known_white_are_skipped(tmp_path):
    picture(tmp_path / "a.png")
    Image.fromarray(np.full((8, 8), 300.0, np.float32)).save(tmp_path / "b.tiff")
    Image.fromarray(np.full((8, 8), 1_000_000, np.int32)).save(tmp_path / "c.tiff")
    got = data.folder(tmp_path, like=RGB)
    assert len(got.tensors().x) == 1
    assert all("white is unknown" in reason for reason in why(got).values())


# ---------------------------------------------------------------- anybody's Dataset


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (torch.full((1, 3, 3), 255.0), "divide them by 255"),
        (torch.full((1, 3, 3), -1.0), "looks normalized"),
        (torch.full((1, 3, 3), torch.nan), "NaN"),
        (torch.full((1, 3, 3), torch.inf), "infinite"),
        (torch.full((1, 3, 3), 7), "torch.int64"),
        (np.full((3, 3), 7, np.int32), "torch.int32"),
        (np.full((3, 3), "a"), "array of <U1"),
        (torch.zeros(9), r"shape \(9,\)"),
        (torch.zeros(1, 1, 3, 3), r"shape \(1, 1, 3, 3\)"),
        (torch.zeros(1, 0, 3), "is empty"),
        (torch.zeros(1, 3, 3, dtype=torch.cfloat), "complex"),
        ("cat.png", r"cat\.png: there is no such file"),
        (None, "is a NoneType"),
    ],
)
def test_image_that_can_not_be_right(image, said):
    with pytest.raises(DataError, match=said) as caught:
        data.wrap([(GOOD, 0), (image, 1)])[1]
    assert "example 1" in str(caught.value) or image == "cat.png"
    assert "tensor(" not in str(caught.value)


@pytest.mark.parametrize("label", [1.5, torch.zeros(3), torch.tensor(1.5), -100, object()])
def test_label_that_can_not_be_right(label):
    with pytest.raises(DataError, match="the label of example 0"):
        data.first([(GOOD, label)], 1)


@pytest.mark.parametrize("item", [{"picture": GOOD}, None, 3, ()])
def test_item_that_is_no_example(item):
    with pytest.raises(DataError, match="wanted"):
        data.first([item], 1)


def test_labels_beyond_the_classes():
    with pytest.raises(DataError, match=r"example 1 .* has the label 2, but the 2 classes have the labels 0 to 1"):
        data.wrap([(GOOD, 1), (GOOD, 2)], classes=("a", "b")).tensors()


def test_some_labels_missing():
    with pytest.raises(DataError, match="1 of 2 examples of 'list' have no label"):
        data.first([(GOOD, 1), (GOOD, None)], 2)


def test_images_of_several_shapes():
    with pytest.raises(DataError, match=r"mixes image shapes: \(1, 3, 3\) and, at number 1, \(1, 4, 3\)"):
        data.first([(GOOD, 1), (torch.zeros(1, 4, 3), 1)], 2)
    with pytest.raises(DataError, match=r"shape \(1, 3, 3\); like wants \(3, 8, 8\)"):
        data.wrap([(GOOD, 1)], like=RGB)


def test_wrong_decode_is_named():
    with pytest.raises(DataError, match="after decode"):
        data.wrap([(GOOD, 1)], decode=lambda z: z * 5)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize("nothing", [[], TensorDataset(torch.zeros(0, 1, 3, 3)), Stream()])
def test_empty_data(nothing):
    with pytest.raises(DataError, match=r"empty|no image"):
        data.first(nothing, 3)


@pytest.mark.parametrize("thing", [5, None, "digits", {"a": 1}, {1, 2}])
def test_what_is_no_data_set(thing):
    with pytest.raises(DataError, match=f"wanted a torch Dataset with a length; got {type(thing).__name__}"):
        data.first(thing, 3)


def test_near_misses_say_what_to_pass():
    with pytest.raises(DataError, match=r"pass its \.dataset, or take some of it with data\.first\(loader, n\)"):
        data.wrap(DataLoader(data.digits()))
    with pytest.raises(DataError, match=r"data\.first"):
        data.wrap(Stream())
    with pytest.raises(DataError, match=r"equally long; got \[4, 3\]"):
        data.wrap((torch.zeros(4, 1, 3, 3), torch.zeros(3)))
