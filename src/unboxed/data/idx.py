"""MNIST and Fashion-MNIST from their original files, in the IDX format of http://yann.lecun.com/exdb/mnist.

LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition"; Xiao et al. 2017, arXiv:1708.07747.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs
import torch
from torch import Tensor

from ..errors import DataError, WriteError
from ..inputs.pixels import Pixels
from .download import Unreachable, checksum, fetch
from .sets import InMemory

LIMIT = 1 << 31  # bytes; a header that claims more is not believed


@dataclass(frozen=True)
class Source:
    """A published set of IDX files: where they are and what their checksums are."""

    name: str
    mirrors: tuple[str, ...]
    md5: Mapping[str, str]
    classes: tuple[str, ...]
    inputs: Pixels


MNIST = Source(
    "mnist",
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
    {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
    tuple("0123456789"),
    Pixels((1, 28, 28), mean=0.1307, std=0.3081),
)
FASHION_MNIST = Source(
    "fashion-mnist",
    (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ),
    {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
    ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    Pixels((1, 28, 28), mean=0.2860, std=0.3530),
)


def mnist(root: str | os.PathLike[str] | None = None, train: bool = True, *, quiet: bool = False) -> InMemory:
    """MNIST: 60,000 handwritten digits to train with, or with `train=False` the 10,000 to test with.

    Read from `root` (the folder of the four .gz files) or the user's cache; what is not there is downloaded to there.
    Files of one's own in this format are taken too. Raises DataError offline and for broken files.
    """
    return _load(MNIST, root, train, quiet)


def fashion_mnist(root: str | os.PathLike[str] | None = None, train: bool = True, *, quiet: bool = False) -> InMemory:
    """Fashion-MNIST: 60,000 pictures of clothes to train with, or 10,000 to test with; as `mnist`."""
    return _load(FASHION_MNIST, root, train, quiet)


def _load(source: Source, root: str | os.PathLike[str] | None, train: bool, quiet: bool) -> InMemory:
    folder = Path(root).expanduser() if root is not None else platformdirs.user_cache_path("unboxed") / source.name
    part = "train" if train else "t10k"
    names = f"{part}-images-idx3-ubyte.gz", f"{part}-labels-idx1-ubyte.gz"
    _complete(source, folder, names, quiet)
    images, labels = (read_idx(_found(folder, n) or folder / n, axes) for n, axes in zip(names, (3, 1), strict=True))
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} images but {len(labels)} labels in the {part} files")
    name = f"{source.name} ({'train' if train else 'test'})"
    return InMemory(name, images[:, None], labels, _classes(source, labels), _inputs(source, images))


def _classes(source: Source, labels: Tensor) -> tuple[str, ...]:
    """The published names, or numbers where files of one's own have more classes."""
    most = int(labels.max())
    return source.classes if most < len(source.classes) else tuple(map(str, range(most + 1)))


def _inputs(source: Source, images: Tensor) -> Pixels:
    _, height, width = images.shape
    return Pixels((1, height, width), source.inputs.mean, source.inputs.std)


def _found(folder: Path, name: str) -> Path | None:
    """The file, packed or unpacked."""
    return next((p for p in (folder / name, folder / name.removesuffix(".gz")) if p.is_file()), None)


def _complete(source: Source, folder: Path, names: tuple[str, ...], quiet: bool) -> None:
    """Download what is missing."""
    missing = [name for name in names if _found(folder, name) is None]
    if not missing:
        return
    for name in set(names) - set(missing):
        _refuse_mixture(source, folder / name, missing)
    _make(folder)
    for name in missing:
        try:
            fetch([url + name for url in source.mirrors], folder / name, source.md5[name], quiet=quiet)
        except Unreachable as error:
            raise DataError(_offline(source, folder, missing, str(error))) from None


def _refuse_mixture(source: Source, path: Path, missing: list[str]) -> None:
    """Published labels beside somebody's own images would be a silent wrong."""
    if not path.is_file() or checksum(path) != source.md5[path.name]:
        raise DataError(f"{path.parent} has its own {path.name}, but no {' and '.join(missing)}; put that there too")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"can't make the folder {folder}: {error.strerror}; give another one: --root (root= in Python)"
        ) from error


def _offline(source: Source, folder: Path, missing: list[str], why: str) -> str:
    left = [name for name in missing if _found(folder, name) is None]
    todo = f"Put {' and '.join(left)} into {folder} (from {source.mirrors[0]}), "
    todo += "or name a folder that has them: --root (root= in Python)"
    return f"{source.name} is not in {folder} and can't be downloaded. {todo}. What was tried: {why}"


def read_idx(path: Path, axes: int) -> Tensor:
    """The unsigned bytes in an IDX file, packed or not, as a tensor with so many axes. Raises DataError if broken."""
    try:
        with _opened(path) as file:
            return _parsed(file, path, axes)
    except (EOFError, zlib.error, struct.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or corrupt ({error}); {_remedy(path)}") from None
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}") from None


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")


def _parsed(file: IO[bytes] | gzip.GzipFile, path: Path, axes: int) -> Tensor:
    magic = file.read(4)
    if magic != bytes((0, 0, 8, axes)):
        raise DataError(f"{path} is not an IDX file of bytes with {axes} axes: it begins {magic.hex() or 'and ends'}")
    shape = struct.unpack(f">{axes}I", file.read(4 * axes))
    size = math.prod(shape)
    if not 0 < size <= LIMIT:
        raise DataError(f"{path} claims the shape {shape}: empty, or too large to be true; {_remedy(path)}")
    body = file.read(size + 1)  # one more: the end of a packed file carries its checksum
    if len(body) != size:
        came = f"holds {len(body)}" if len(body) < size else "holds more"
        raise DataError(f"{path} is truncated or corrupt: it claims {size} bytes and {came}; {_remedy(path)}")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(shape)


def _remedy(path: Path) -> str:
    return f"delete it: {path.name} is downloaded anew, or put a sound copy there"
