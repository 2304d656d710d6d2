"""Files of word vectors: GloVe, word2vec and fastText, as text and binary, read by gensim."""

from __future__ import annotations

import gzip
import os
import struct
import traceback
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import IO, Any, Literal, cast

import torch

from ..errors import DataError, MissingPackageError
from ..validation import check_int, missing_path_text
from .vectors import WordVectors

VectorFileFormat = Literal["fasttext", "binary", "text"]
FASTTEXT_MAGIC = struct.pack("<i", 793712314)  # with which a .bin of fastText begins
OTHER_FORMAT_ADVICE_BY_MAGIC = {
    b"PK": "a zip archive; unzip it first",
    b"\x80": "a pickle, which could run code: save the vectors with gensim's save_word2vec_format",
    b"\x89HDF": "an HDF5 file; save the vectors as text: a word and its numbers per line",
}
MAX_FIRST_LINE_BYTES = 2**20  # of the first line, from which the format is determined
FORMAT_SAMPLE_BYTES = 4096  # after the header that decide between text and binary
ERRORS_OF_UNREADABLE_FILES = (
    ValueError,
    EOFError,
    IndexError,
    AssertionError,
    OSError,
    zlib.error,
    NotImplementedError,
    struct.error,
    MemoryError,
    TypeError,
)
"""What gensim raises of a broken file."""


def load_vectors(
    path: str | os.PathLike[str], *, max_words: int | None = None, ignore_case: bool = False
) -> WordVectors:
    r"""Read word vectors: GloVe, word2vec or fastText, text or binary, also compressed (.gz).

    The format is determined from the file. Of a fastText model (.bin) the vectors of its words are read, not those of
    parts of words. Needs gensim.

    Args:
        path: The file.
        max_words: Read only the first words, which are the most frequent ones; None reads all.
        ignore_case: Whether a word that is not there is looked up in lower case, too: for vectors of lower-case words,
            such as GloVe 6B. Results say which words were replaced.

    Returns:
        The `WordVectors`, in float32, named as the file.

    Raises:
        DataError: for no such file, another format, a line that is broken or of another dimension (with its number),
            or a file that ends early.
        MissingPackageError: without gensim.

    Example:
        >>> import pathlib, tempfile, unboxed as ub
        >>> path = pathlib.Path(tempfile.mkdtemp(), "tiny.txt")
        >>> size = path.write_text("sun 1 0\nmoon .8 .6\nbread 0 1\n")
        >>> ub.language.load_vectors(path)
        WordVectors('tiny.txt', 3 words, 2 dimensions)

    Source:
        Pennington et al. 2014 (GloVe), Mikolov et al. 2013 (word2vec), Bojanowski et al. 2017 (fastText), as gensim's
        KeyedVectors reads them (Řehůřek & Sojka 2010). Lines of text are checked before: gensim takes a line with a
        single number for a whole vector, and ignores lines after those that the header counts.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(missing_path_text(file))
    limit = None if max_words is None else check_int("max_words", max_words, minimum=1)
    gensim = _import_gensim()
    header = _read_header(file)
    if header.layout == "text":
        _check_vector_lines(file, header, limit)
    if header.layout == "binary":
        _check_file_holds_promised_size(file, header, limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # gensim leaves the file open where it has no header
        warnings.simplefilter("ignore", RuntimeWarning)  # of overflow: infinite values are refused below
        try:
            keyed = _read_with_gensim(gensim, file, header, limit)
        except ERRORS_OF_UNREADABLE_FILES as error:
            traceback.clear_frames(error.__traceback__)
            raise DataError(_unreadable_line_text(file, header, limit, error)) from error
    words = [str(word) for word in keyed.index_to_key[:limit]]
    vectors = torch.from_numpy(keyed.vectors[: len(words)])
    if not bool(vectors.isfinite().all()):
        raise DataError(_unreadable_line_text(file, header, limit, ValueError("NaN or infinite values")))
    return WordVectors(words, vectors, file.name, ignore_case)


def _import_gensim() -> ModuleType:
    try:
        import gensim.models.fasttext
        import gensim.models.keyedvectors
    except ImportError as error:
        raise MissingPackageError(
            f'reading word vectors needs gensim: pip install "unboxed[language]" ({error})'
        ) from error
    return cast(ModuleType, gensim)


@dataclass(frozen=True)
class _VectorFileHeader:
    """What the start of a file says. `words`: how many vectors it promises; None where it has no header (GloVe)."""

    layout: VectorFileFormat
    words: int | None = None
    dimensions: int = 0


def open_maybe_gzipped(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file) if file.suffix == ".gz" else file.open("rb"))


def _read_header(file: Path) -> _VectorFileHeader:
    """The format of a file, from its first bytes. Raises DataError."""
    try:
        with open_maybe_gzipped(file) as stream:
            line, sample = stream.readline(MAX_FIRST_LINE_BYTES), stream.read(FORMAT_SAMPLE_BYTES)
    except ERRORS_OF_UNREADABLE_FILES as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if not line.strip():
        raise DataError(f"{file} begins with an empty line: wanted word vectors")
    if line.startswith(FASTTEXT_MAGIC):
        return _VectorFileHeader("fasttext")
    for magic, kind in OTHER_FORMAT_ADVICE_BY_MAGIC.items():
        if line.startswith(magic):
            raise DataError(f"{file} is {kind}")
    fields = line.split()
    if len(fields) == 2 and all(f.isdigit() for f in fields):
        return _VectorFileHeader("text" if _is_printable_utf8(sample) else "binary", int(fields[0]), int(fields[1]))
    if not _is_printable_utf8(line) or len(fields) < 2:
        raise DataError(f"{file} is not a file of word vectors: wanted a word and its numbers on each line, or "
                        "word2vec's header (the number of words and of dimensions)")  # fmt: skip
    return _VectorFileHeader("text", None, len(fields) - 1)


def _is_printable_utf8(data: bytes) -> bool:
    """Whether bytes are UTF-8 without control characters; a character may be cut at the end."""
    if any(byte < 9 for byte in data):
        return False
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(data) - 3
    return True


def _read_with_gensim(gensim: Any, file: Path, header: _VectorFileHeader, limit: int | None) -> Any:
    if header.layout == "fasttext":
        return gensim.models.fasttext.load_facebook_vectors(str(file))
    return gensim.models.keyedvectors.KeyedVectors.load_word2vec_format(
        str(file), binary=header.layout == "binary", no_header=header.words is None, limit=limit
    )


def _check_file_holds_promised_size(file: Path, header: _VectorFileHeader, limit: int | None) -> None:
    """A header that promises more than the file holds is refused, before memory is taken for it. Raises DataError."""
    promised = min(header.words or 0, limit or header.words or 0) * 4 * header.dimensions
    if not header.dimensions or not header.words:
        raise DataError(f"{file} holds no vectors")
    if file.suffix != ".gz" and file.stat().st_size < promised:
        raise DataError(_unreadable_line_text(file, header, limit, EOFError("the file ends early")))


def _numbered_lines(stream: IO[bytes], header: _VectorFileHeader, limit: int | None) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of the vectors that are read."""
    first = 0 if header.words is None else 1
    n = header.words if header.words is not None else limit
    stop = None if n is None else first + min(n, limit or n)
    return islice(enumerate(stream, start=1), first, stop)


def _check_vector_lines(file: Path, header: _VectorFileHeader, limit: int | None) -> None:
    """Every line has a word and as many numbers as there are dimensions. Raises DataError, which names the line."""
    number = n_lines = 0
    try:
        with open_maybe_gzipped(file) as stream:
            for number, line in _numbered_lines(stream, header, limit):
                n_lines += 1
                n_numbers = line.rstrip().count(b" ")
                if n_numbers != header.dimensions:
                    raise DataError(_wrong_dimension_text(file, number, line, n_numbers, header))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} is broken after line {number}: {error}") from error
    if header.words is not None and n_lines < min(header.words, limit or header.words):
        raise DataError(f"{file} ends after line {number}: its header promises {header.words:,} vectors")
    if not n_lines:
        raise DataError(f"{file} holds no vectors")


def _wrong_dimension_text(file: Path, number: int, line: bytes, n_numbers: int, header: _VectorFileHeader) -> str:
    start = line[:40].decode("utf-8", "replace").rstrip()
    source = "its header" if header.words is not None else "its first line"
    return (
        f"line {number} of {file} has {n_numbers} numbers; {source} has {header.dimensions} dimensions: {start!r}... "
        "Wanted a word without spaces and its numbers, one space between them"
    )


def _unreadable_line_text(file: Path, header: _VectorFileHeader, limit: int | None, error: BaseException) -> str:
    """What is wrong with a file that gensim could not read: the first line whose numbers are none."""
    if header.layout != "text":
        promised = f": its header promises {header.words:,} vectors of {header.dimensions}" if header.words else ""
        return f"{file} is broken or ends early{promised} ({error or type(error).__name__})"
    with open_maybe_gzipped(file) as stream:
        for number, line in _numbered_lines(stream, header, limit):
            if reason := _unreadable_line_reason(line):
                return f"line {number} of {file}: {reason}"
    return f"{file} cannot be read: {error or type(error).__name__}"


def _unreadable_line_reason(line: bytes) -> str:
    try:
        word, *numbers = line.decode("utf-8").rstrip().split(" ")
    except UnicodeDecodeError:
        return "is not UTF-8"
    for text in numbers:
        if not _is_finite_number(text):
            return f"{text!r} of the word {word!r} is no finite number"
    return ""


def _is_finite_number(text: str) -> bool:
    try:
        return abs(float(text)) < torch.finfo(torch.float32).max
    except ValueError:
        return False
