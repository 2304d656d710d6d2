"""The views of any result: one image, an image on axes, HTML for a notebook, and files by their ending."""

from __future__ import annotations

import base64
import json
import os
import sys
from html import escape
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageShow

from ..atomic_write import encode_utf8, write_bytes
from ..engine.results import json_summary, nonfinite_to_none, result_tensors
from ..errors import InputError, warn
from .figures import figures
from .files import png_bytes, save
from .generated import save_animation

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..box import Box

INCHES_PER_PIXEL = 1 / 100
MAX_JSON_TENSOR_VALUES = 100_000  # of a tensor that a file lists in full: 32 maps of 56 x 56, say
MAX_JSON_LINES = 1_000


def result_image(result: Any, name: str | None = None, *, box: Box | None = None, data: Any = None) -> Image.Image:
    """One picture of a result, by name. Raises InputError where there is none."""
    images = figures(result, box, data=data)
    kind = type(result).__name__
    if not images:
        needs = "" if data is not None else "; if its picture shows examples, give them: data=(x, y)"
        raise InputError(f"there is no picture of this {kind}{needs}")
    if name is None:
        return next(iter(images.values()))
    if name not in images:
        raise InputError(f"this {kind} has no picture {name!r}; it has {', '.join(map(repr, images))}")
    return images[name]


def plot_on_axes(image: Image.Image, ax: Axes | None = None) -> Axes:
    """An image on axes without ticks; on a figure of its size where none are given."""
    if ax is None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(image.width * INCHES_PER_PIXEL, image.height * INCHES_PER_PIXEL), layout="tight")
        ax = figure.add_subplot()
    ax.imshow(image, interpolation="nearest")
    ax.set_axis_off()
    return ax


def show_image(image: Image.Image) -> None:
    """Show an image in the notebook that runs, else in the system's viewer; warn where there is none."""
    if not display_in_notebook(image) and not (has_screen() and ImageShow.show(image)):
        warn("there is no screen to show the picture on: write it to a file with .save('picture.png')")


def display_in_notebook(shown: Any) -> bool:
    """Show it in the cell of the notebook that runs; returns whether one runs."""
    ipython = sys.modules.get("IPython")
    if ipython is None or getattr(ipython.get_ipython(), "kernel", None) is None:
        return False
    ipython.display.display(shown)
    return True


def has_screen() -> bool:
    """Whether windows can open: on Linux and its kin, where a display is named."""
    return sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def save_result(result: Any, path: Path, *, box: Box | None = None, data: Any = None) -> Path:
    """Write a result as the ending of the file's name says."""
    ending = path.suffix.lower()
    if ending == ".json":
        return write_bytes(path, encode_utf8(_json_text(json_summary(result, MAX_JSON_TENSOR_VALUES))))
    if ending == ".npz":
        return write_bytes(path, _npz_bytes(result))
    if ending == ".html":
        page = import_module("unboxed.report.result_page")  # pages are above plots
        return page.write_result_page(result, path, box=box, data=data)  # type: ignore[no-any-return]
    if ending == ".gif" and getattr(result, "frames", None) is not None:
        return save_animation(result, path)
    if ending == ".gif":
        raise InputError(
            f"this {type(result).__name__} has no frames for a GIF: call its method with frame_every=k if it takes "
            "that, or write a PNG"
        )
    return save(result_image(result, box=box, data=data), path)


def _json_text(summary: Any) -> str:
    """In lines for a reader, but in one where the values of tensors would take one each."""
    summary = nonfinite_to_none(summary)
    text = json.dumps(summary, indent=1, ensure_ascii=False)
    return text if text.count("\n") <= MAX_JSON_LINES else json.dumps(summary, ensure_ascii=False)


def _npz_bytes(result: Any) -> bytes:
    """All tensors and numbers as NumPy arrays by where they are in the result: "map", "scores", "[conv1].mean"."""
    tensors = {name.lstrip(".") or "result": t.detach().cpu() for name, t in result_tensors(result).items()}
    arrays = {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in tensors.items()}
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def verdict_and_reason_text(result: Any) -> str:
    """The verdict that a result carries, with its reason; "" where it carries none."""
    verdict, reason = getattr(result, "verdict", None), getattr(result, "reason", "")
    return f"{verdict}: {reason}" if isinstance(verdict, str) and isinstance(reason, str) and reason else ""


def result_html(result: Any) -> str | None:
    """The most important picture of a result with its words as HTML; None where it has no picture."""
    images = figures(result)
    if not images:
        return None
    name, image = next(iter(images.items()))
    source = base64.b64encode(png_bytes(image)).decode("ascii")
    lines = [repr(result), verdict_and_reason_text(result)]
    if len(images) > 1:
        lines.append(f"more pictures: {', '.join(f'.image({other!r})' for other in list(images)[1:4])}")
    words = "<br>".join(escape(line) for line in lines if line)
    return (
        f'<figure style="margin:0"><img src="data:image/png;base64,{source}" alt="{escape(name)}" '
        f'style="max-width:100%"><figcaption style="font-size:.85em">{words}</figcaption></figure>'
    )
