"""Write README's table of figures from the JSON in results/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


def reading(f: dict[str, Any]) -> str:
    return f"reading a layer at a quarter of the depth, against a full forward | **{f['ratio']:.2f}x** the time"


def gradient(f: dict[str, Any]) -> str:
    ratios = " / ".join(f"{f[k]['ratio']:.2f}x" for k in ("batch_64", "batch_1"))
    return f"`gradient` against captum's Saliency, same maps to 1e-6 (64 images / 1 image) | **{ratios}** the time"


def callback(f: dict[str, Any]) -> str:
    share = f"**{f['share_of_epoch']:.1%}** of the epoch"
    return f"`ConfusedLogits`, a confused input at every look, drawing included | {share}"


def class_images(f: dict[str, Any]) -> str:
    def said(name: str, recipe: str) -> str:
        rows = f[name][recipe]
        named = f"{sum(r['named'] for r in rows)} of {10 * len(rows)}"
        return f"{named}, mean p {sum(r['p'] for r in rows) / len(rows):.2f}"

    seeds = len(f["digits"]["robust"])
    cells = [f"{n}: **{said(n, 'robust')}** (plain ascent: {said(n, 'noise')})" for n in ("mnist", "digits")]
    return f"class images of {seeds} seeds named by a robust net that took no part | {'; '.join(cells)}"


ROWS = (reading, gradient, callback, class_images)


def main() -> None:
    lines = ["| what | measured |", "|---|---|"]
    for row in ROWS:
        path = HERE / "results" / f"{row.__name__}.json"
        if path.exists():
            lines.append(f"| {row(json.loads(path.read_text()))} |")
    readme = HERE.parent / "README.md"
    head, rest = readme.read_text().split(BEGIN)
    readme.write_text(f"{head}{BEGIN}\n{chr(10).join(lines)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
