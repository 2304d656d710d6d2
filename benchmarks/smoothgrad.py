"""`attribution.smoothgrad` against captum's NoiseTunnel around Saliency (signed): the same samples' mean, as fast.

Both draw noise of their own, so that their maps agree as two samples do: their distance is compared with that of two
samples of captum's. Images are chosen alike in range, for captum's noise does not follow it.
"""

from __future__ import annotations

import torch
from captum.attr import NoiseTunnel, Saliency
from torch import Tensor

import unboxed as ub
from harness import compare, write
from integrated_gradients import Normalized

SAMPLES, NOISE = 50, 0.15


def figures(batch: int, at_once: int | None) -> dict[str, float | int]:
    """`at_once` samples of each image go together in captum; None: all of them."""
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    x, _ = ub.data.digits("test").first(4 * batch)
    x = x[(x.flatten(1).amax(1) - x.flatten(1).amin(1) > 0.999)][:batch]
    if len(x) < batch:
        raise SystemExit("too few images of the full range")
    y = box.predict(x)
    tunnel = NoiseTunnel(Saliency(Normalized(box).eval()))

    def ours(seed: int = 0) -> Tensor:
        return ub.attribution.smoothgrad(box, x, y, n_samples=SAMPLES, noise=NOISE, seed=seed)

    def captum() -> Tensor:
        return tunnel.attribute(
            x.clone().requires_grad_(), target=y, nt_type="smoothgrad", nt_samples=SAMPLES,
            nt_samples_batch_size=at_once, stdevs=NOISE, abs=False,
        )  # fmt: skip

    def check() -> None:
        torch.manual_seed(0)
        across = float((ours() - captum()).square().mean())
        within = float((captum() - captum()).square().mean() + (ours(1) - ours(2)).square().mean()) / 2
        if not 0.8 < across / within < 1.25:
            raise SystemExit(f"ours and captum's differ by {across}, two of one kind by {within}")

    return compare(ours, captum, pairs=7, check=check)


def main() -> None:
    torch.set_num_threads(1)
    found = {
        "batch_1": figures(1, None), "batch_32": figures(32, None), "batch_32_captum_in_parts": figures(32, 5)
    }  # fmt: skip
    what = f"SmoothGrad of {SAMPLES} samples against captum's NoiseTunnel(Saliency) on the MNIST CNN"
    write("smoothgrad", {"what": what, **found}, packages=["captum"])


if __name__ == "__main__":
    main()
