"""One image in place of a folder, files by their names, and what is said where an option is needed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import unboxed as ub
from unboxed import loading
from unboxed.cli.app import app
from unboxed.errors import DataError

MODEL = ["--model", "zoo:digits-cnn"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """Class folders of digits, and a photo beside them that is one of them."""
    root = tmp_path_factory.mktemp("images")
    x, y = ub.data.digits("test").first(24)
    for i, (image, label) in enumerate(zip(x, y.tolist(), strict=True)):
        (root / "train" / str(label)).mkdir(parents=True, exist_ok=True)
        drawn = Image.fromarray((image[0] * 255).round().to(torch.uint8).numpy())
        drawn.save(root / "train" / str(label) / f"scan{i}.png")
    drawn.save(root / "photo.png")
    return root


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def test_an_image_is_data_without_labels(folder: Path) -> None:
    data: Any = loading.data(str(folder / "photo.png"), like=ub.Pixels((1, 28, 28)))
    assert len(data) == 1
    assert data[0][1] == -1
    assert torch.equal(data[0][0], ub.image(folder / "photo.png", like=ub.Pixels((1, 28, 28)))[0])


def test_an_image_that_is_broken_is_named(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"can't read .*photo\.png: "):
        loading.data(str(tmp_path / "photo.png"), like=ub.Pixels((1, 28, 28)))


def test_influence_on_one_photo_names_the_training_files(folder: Path, tmp_path: Path) -> None:
    words = "--train", str(folder / "train"), "--query", str(folder / "photo.png"), "--no-verdict", "-q"
    done = invoke("influence", *MODEL, *words, "--k", "2", "-o", str(tmp_path))
    assert done.exit_code == 0, done.output
    facts = json.loads((tmp_path / "influence.json").read_text())
    (query,) = facts["queries"]
    named = [Path(entry["file"]).name for side in ("helpful", "harmful") for entry in query[side]]
    assert named
    assert all(name in done.output for name in named)
    assert "example 0" not in done.output


def test_methods_run_on_one_photo(folder: Path, tmp_path: Path) -> None:
    words = "--data", str(folder / "photo.png"), "-q", "-o", str(tmp_path)
    done = invoke("run", "gradient", *MODEL, *words)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "attribution.png").is_file()


def test_an_attack_without_eps_is_told_what_is_usual() -> None:
    done = invoke("attack", *MODEL, "--data", "digits")
    assert done.exit_code == 2
    assert "Give --eps: 8/255 is usual for photos" in done.output
