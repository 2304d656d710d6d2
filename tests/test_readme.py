"""README's example runs as it stands, and its pictures are there."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["why"].shape == names["x"].shape  # type: ignore[attr-defined]
    assert names["other"].reached.all()  # type: ignore[attr-defined]
    assert torch.isfinite(names["fine"]).all()  # type: ignore[call-overload]


def test_its_pictures_and_links_exist() -> None:
    text = README.read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert len(links) > 5
    assert [link for link in links if not (README.parent / link).exists()] == []
