"""Do the report's map of 10,000 images and a map of 100,000 words stay smooth? In a browser without a graphics card.

While the map is panned and zoomed, as dots and as images: the work of each frame, and the time from one to the next.
Wanted: no frame over 50 ms.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import unboxed as ub
from harness import write
from unboxed.engine.read.neighbors import nearest_points
from unboxed.report import Finding, Section, report
from unboxed.report.plane import LayerScatterMap, ScatterMapBlock, make_thumbnail_atlas

QUIET = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
         "--disable-component-update", "--disable-sync")  # fmt: skip
MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; without it, digits over and over
VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {
        "viewport": {"width": 390, "height": 844},
        "device_scale_factor": 3,
        "is_mobile": True,
        "has_touch": True,
    },
}
MOVED = """async ([images, seconds]) => {
  const { map } = document.querySelector('.map');
  if (map.view().images !== images) document.querySelector(".map-tools [value='images']").click();
  document.querySelector(".map-tools [value='all']").click();
  const gaps = [], work = [];
  let last = 0;
  await new Promise((done) => {
    const begun = performance.now();
    function frame(time) {
      if (last) gaps.push(time - last);
      last = time;
      const t = (time - begun) / 1000;
      map.zoom(t % 2 < 1 ? 1.03 : 1 / 1.03);
      map.pan(6 * Math.sin(5 * t), 6 * Math.cos(5 * t));
      const start = performance.now();
      map.paint();
      work.push(performance.now() - start);
      t < seconds ? requestAnimationFrame(frame) : done();
    }
    requestAnimationFrame(frame);
  });
  const sorted = (all) => all.slice(3).sort((a, b) => a - b), g = sorted(gaps), w = sorted(work);
  return { frames: g.length, gap_median: g[g.length >> 1], gap_most: g[g.length - 1],
           work_median: w[w.length >> 1], work_most: w[w.length - 1] };
}"""


def examples(n: int) -> tuple[Tensor, Tensor]:
    known = ub.data.mnist("test", Path(MNIST)) if MNIST else ub.data.digits()
    x, y = known.tensors()
    rows = torch.arange(n) % len(x)
    return x[rows], y[rows]


def plane(x: Tensor, y: Tensor) -> ScatterMapBlock:
    """Clusters by label; what is measured doesn't ask how the points came to their places."""
    draw = torch.Generator().manual_seed(0)
    n = len(x)
    layers = []
    for spread in (1.5, 1.0, 0.6, 0.3):
        points = torch.randn(10, 2, generator=draw)[y] * 2 + spread * torch.randn(n, 2, generator=draw)
        layers.append(LayerScatterMap(f"spread {spread}", "", points, nearest_points(points, points, 6).indices))
    words = [[f"predicted {int(k)}" for k in y], [f"p 0.{i % 90 + 10}, label {int(k)}" for i, k in enumerate(y)]]
    names = [str(k) for k in range(10)]
    wrong = [i % 50 == 0 for i in range(n)]
    return ScatterMapBlock(
        "map-plane",
        layers,
        y.tolist(),
        names,
        wrong,
        words,
        [f"example {i}" for i in range(n)],
        "a map",
        "hint",
        "help",
        make_thumbnail_atlas(x),
    )


def page(n: int, folder: Path) -> Path:
    x, y = examples(n)
    box = ub.Box(*ub.zoo.load("mnist-linear"))
    section = Section("Map", "map", lambda context: Finding(), lambda finding: [plane(x, y)])
    return report(box, (x[:50], y[:50]), folder, sections=[section], quiet=True).path


def word_page(n: int, folder: Path) -> Path:
    """As many made-up words, in clusters, with made-up nearest words."""
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(300, 2, generator=draw).repeat(-(-n // 300), 1)[:n] * 4 + torch.randn(n, 2, generator=draw)
    nearest = torch.randint(n, (n, 10), generator=draw)
    words = tuple(f"word{i}" for i in range(n))
    return ub.language.WordMap(words, points, 0.4, 0.0, 10, "made-up vectors", nearest).save(folder / "words.html")


def measured(path: Path, seconds: float, kinds: tuple[str, ...] = ("dots", "images")) -> dict[str, Any]:
    from playwright.sync_api import sync_playwright

    found = next(p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name)))
    figures: dict[str, Any] = {}
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=found, args=list(QUIET))
        for view, settings in VIEWS.items():
            tab = browser.new_context(**settings).new_page()
            tab.goto(path.as_uri())
            tab.wait_for_timeout(500)
            tab.locator(".map").scroll_into_view_if_needed()
            for shown in kinds:
                moved = tab.evaluate(MOVED, [shown == "images", seconds])
                figures[f"{view}_{shown}"] = {k: round(v, 1) for k, v in moved.items()}
        browser.close()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--words", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=4)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = page(chosen.points, Path(folder) / "page")
        size = path.stat().st_size
        figures = measured(path, chosen.seconds)
        words = word_page(chosen.words, Path(folder))
        figures["words"] = {"points": chosen.words, "page_bytes": words.stat().st_size}
        figures["words"] |= measured(words, chosen.seconds, ("dots",))
    what = f"panning and zooming maps of {chosen.points:,} images and of words in headless Chromium, milliseconds"
    write("map", {"what": what, "page_bytes": size, **figures}, packages=("playwright",))


if __name__ == "__main__":
    main()
