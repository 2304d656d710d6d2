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


def channels(f: dict[str, Any]) -> str:
    def said(name: str) -> str:
        drawn, control = f[name]["drawn"], f[name]["control"]
        return f"{name}: **{drawn['above_best_real']:.0%}** (raw ascent: {control['above_best_real']:.0%})"

    cells = [said(name) for name in ("mnist-cnn relu1", "mnist-cnn relu2", "cifar-resnet20 layer3.1")]
    what = "drawings that, turned, zoomed and shifted anew, excite their channel more than the best real image does"
    return f"{what} | {'; '.join(cells)}"


def inversion(f: dict[str, Any]) -> str:
    rows = f["mnist_cnn"]
    cells = [
        f"{a}: {max(rows[a]['error']):.1g}, SSIM **{min(rows[a]['ssim']):.2f}**" for a in ("conv1", "conv2", "fc1")
    ]
    return f"inversion of 20 MNIST images in {f['steps']} steps, worst of 3 seeds: feature error | {'; '.join(cells)}"


def top_examples(f: dict[str, Any]) -> str:
    what = f"top examples and statistics of every unit of three layers, one pass over {f['images']:,} images"
    return f"{what} | **{f['ratio']:.2f}** of a bare forward pass's speed"


def depth(f: dict[str, Any]) -> str:
    plain, last = (f[k]["ratio"] for k in ("loop", "loop_channels_last"))
    what = "a step on a channel of VGG-16's 4th layer, against a step on a logit (channels_last)"
    return f"{what} | **{plain:.2f}x** ({last:.2f}x)"


def tsne(f: dict[str, Any]) -> str:
    right = f"10 nearest neighbors agree for {f['accuracy_last_hidden']:.1%} (raw pixels: {f['accuracy_pixels']:.1%})"
    return f"t-SNE map of 10,000 MNIST images, against openTSNE itself | **{f['ratio']:.2f}x** the time; {right}"


def map(f: dict[str, Any]) -> str:
    worst = max(f[k]["gap_most"] for k in f if isinstance(f[k], dict) and "gap_most" in f[k])
    return f"interactive map of 10,000 points, longest frame while panning and zooming | **{worst:.0f} ms**"


ROWS = (reading, gradient, callback, class_images, channels, inversion, top_examples, depth, tsne, map)


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
