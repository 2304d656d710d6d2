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

import torch
from torch import Tensor

from ..errors import DataError, WriteError
from ..inputs.pixels import Pixels
from ..validation import expand_home
from .download import DownloadError, cache_folder, download_from_first_mirror, md5_checksum
from .sets import InMemory, Split, check_split

MAX_IDX_BYTES = 1 << 31  # a header that claims more is refused


@dataclass(frozen=True)
class IDXFileSet:
    """A published set of IDX files: mirrors and checksums."""

    name: str
    mirrors: tuple[str, ...]
    md5: Mapping[str, str]
    classes: tuple[str, ...]
    inputs: Pixels


MNIST_FILE_SET = IDXFileSet(
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
FASHION_MNIST_FILE_SET = IDXFileSet(
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


def mnist(split: Split = "all", root: str | os.PathLike[str] | None = None, *, quiet: bool = False) -> InMemory:
    """MNIST: 60,000 handwritten digits for training, or the 10,000 for testing.

    Files of your own in the same format are read, too.

    Args:
        split: "train" (60,000 images), "test" (10,000) or "all" of them, as for `digits`.
        root: Folder of the four IDX files, packed or not. None takes the user's cache folder. What is missing is
            downloaded to it.
        quiet: No progress bar while downloading.

    Returns:
        Images (1, 28, 28) in [0, 1] with labels 0 to 9, held in memory as bytes.

    Raises:
        InputError: for another split.
        DataError: offline with files missing, and for broken files.
        WriteError: where the folder cannot be made.

    Example:
        >>> import unboxed as ub
        >>> data = ub.data.mnist("test", "path/to/mnist")  # doctest: +SKIP
        >>> x, y = data.first(8)  # doctest: +SKIP

    Source:
        LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition".
    """
    return _load_idx_files(MNIST_FILE_SET, split, root, quiet)


def fashion_mnist(split: Split = "all", root: str | os.PathLike[str] | None = None, *, quiet: bool = False) -> InMemory:
    """Fashion-MNIST: 60,000 images of clothes for training, or the 10,000 for testing.

    Args:
        split: "train" (60,000 images), "test" (10,000) or "all" of them, as for `digits`.
        root: Folder of the four IDX files; see `mnist`.
        quiet: No progress bar while downloading.

    Returns:
        Images (1, 28, 28) in [0, 1] with ten named classes.

    Raises:
        InputError: for another split.
        DataError: offline with files missing, and for broken files.
        WriteError: where the folder cannot be made.

    Example:
        >>> import unboxed as ub
        >>> data = ub.data.fashion_mnist("test", "path/to/fashion")  # doctest: +SKIP

    Source:
        Xiao et al. 2017, arXiv:1708.07747.
    """
    return _load_idx_files(FASHION_MNIST_FILE_SET, split, root, quiet)


FILE_PREFIXES_BY_SPLIT: Mapping[Split, tuple[str, ...]] = {
    "all": ("train", "t10k"), "train": ("train",), "test": ("t10k",)
}  # fmt: skip


def _load_idx_files(source: IDXFileSet, split: Split, root: str | os.PathLike[str] | None, quiet: bool) -> InMemory:
    folder = expand_home(root) if root is not None else cache_folder() / source.name
    prefixes = FILE_PREFIXES_BY_SPLIT[check_split(source.name, split)]
    parts = [_load_idx_part(source, folder, prefix, quiet) for prefix in prefixes]
    images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    name = source.name if split == "all" else f"{source.name} ({split})"
    return InMemory(
        name, images[:, None], labels, _class_names_or_numbers(source, labels), _pixel_inputs_for_images(source, images)
    )


def _load_idx_part(source: IDXFileSet, folder: Path, file_prefix: str, quiet: bool) -> tuple[Tensor, Tensor]:
    """The images (N, H, W) and labels (N,) of one of the two pairs of files."""
    file_names = f"{file_prefix}-images-idx3-ubyte.gz", f"{file_prefix}-labels-idx1-ubyte.gz"
    _download_missing(source, folder, file_names, quiet)
    images, labels = (
        read_idx(_find_gzipped_or_unzipped(folder, file_name) or folder / file_name, n_axes)
        for file_name, n_axes in zip(file_names, (3, 1), strict=True)
    )
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} images but {len(labels)} labels in the {file_prefix} files")
    return images, labels


def _class_names_or_numbers(source: IDXFileSet, labels: Tensor) -> tuple[str, ...]:
    """The published names, or numbers where a user's files have more classes."""
    largest_label = int(labels.max())
    return source.classes if largest_label < len(source.classes) else tuple(map(str, range(largest_label + 1)))


def _pixel_inputs_for_images(source: IDXFileSet, images: Tensor) -> Pixels:
    _, height, width = images.shape
    return Pixels((1, height, width), source.inputs.mean, source.inputs.std)


def _find_gzipped_or_unzipped(folder: Path, name: str) -> Path | None:
    """The file, packed or unpacked."""
    return next((p for p in (folder / name, folder / name.removesuffix(".gz")) if p.is_file()), None)


def _download_missing(source: IDXFileSet, folder: Path, names: tuple[str, ...], quiet: bool) -> None:
    """Download what is missing."""
    missing = [name for name in names if _find_gzipped_or_unzipped(folder, name) is None]
    if not missing:
        return
    for name in set(names) - set(missing):
        _check_not_mixed_with_published(source, folder / name, missing)
    _make_folder(folder)
    for name in missing:
        try:
            download_from_first_mirror(
                [url + name for url in source.mirrors], folder / name, source.md5[name], quiet=quiet
            )
        except DownloadError as error:
            raise DataError(_download_failed_text(source, folder, missing, str(error))) from None


def _check_not_mixed_with_published(source: IDXFileSet, path: Path, missing: list[str]) -> None:
    """Check that published labels are not combined with a user's images, which would be a silent error."""
    if not path.is_file() or md5_checksum(path) != source.md5[path.name]:
        raise DataError(f"{path.parent} has its own {path.name}, but no {' and '.join(missing)}; put that there too")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(
            f"can't make the folder {folder}: {error.strerror}; give another one: --root (root= in Python)"
        ) from error


def _download_failed_text(source: IDXFileSet, folder: Path, missing: list[str], reason: str) -> str:
    still_missing = [name for name in missing if _find_gzipped_or_unzipped(folder, name) is None]
    advice = f"Put {' and '.join(still_missing)} into {folder} (from {source.mirrors[0]}), "
    advice += "or name a folder that has them: --root (root= in Python)"
    return f"{source.name} is not in {folder} and can't be downloaded. {advice}. What was tried: {reason}"


def read_idx(path: Path, n_axes: int) -> Tensor:
    """The unsigned bytes in an IDX file, packed or not, as a tensor with this many axes. Raises DataError if broken."""
    try:
        with _open_maybe_gzip(path) as file:
            return _parse_idx(file, path, n_axes)
    except (EOFError, zlib.error, struct.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or corrupt ({error}); {_broken_file_advice(path)}") from None
    except OSError as error:
        raise DataError(f"can't read {path}: {error.strerror or error}") from None


def _open_maybe_gzip(path: Path) -> IO[bytes] | gzip.GzipFile:
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if is_gzip else path.open("rb")


def _parse_idx(file: IO[bytes] | gzip.GzipFile, path: Path, n_axes: int) -> Tensor:
    magic = file.read(4)
    if magic != bytes((0, 0, 8, n_axes)):
        raise DataError(f"{path} is not an IDX file of bytes with {n_axes} axes: it begins {magic.hex() or 'and ends'}")
    shape = struct.unpack(f">{n_axes}I", file.read(4 * n_axes))
    n_bytes = math.prod(shape)
    if not 0 < n_bytes <= MAX_IDX_BYTES:
        raise DataError(f"{path} claims the shape {shape}: empty, or too large to be true; {_broken_file_advice(path)}")
    content = file.read(n_bytes + 1)  # one more: the checksum is at the end of a packed file
    if len(content) != n_bytes:
        actual_text = f"holds {len(content)}" if len(content) < n_bytes else "holds more"
        raise DataError(
            f"{path} is truncated or corrupt: it claims {n_bytes} bytes and {actual_text}; {_broken_file_advice(path)}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(shape)


def _broken_file_advice(path: Path) -> str:
    return f"delete it: {path.name} is downloaded again, or replace it by a valid copy"
