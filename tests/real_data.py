"""Where the real data for development is; a user's clone has none, so the tests that need it skip and say so."""

import os
from pathlib import Path

import pytest

ROOT = Path(os.environ.get("UNBOXED_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
MNIST, CIFAR, PHOTOS = ROOT / "mnist", ROOT / "cifar10", ROOT / "photos"
WORDS, SENTENCES = ROOT / "words", ROOT / "sentences"


def _needs(path: Path) -> pytest.MarkDecorator:
    reason = f"real data absent: no {path.name}/ (set UNBOXED_REAL_DATA to the folder that holds it)"
    return pytest.mark.skipif(not path.is_dir(), reason=reason)


needs_mnist, needs_cifar, needs_photos = _needs(MNIST), _needs(CIFAR), _needs(PHOTOS)
needs_words, needs_sentences = _needs(WORDS), _needs(SENTENCES)
