"""How to get this page again: the command, the seed, the versions, the data, and which weights these were."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import nn

from .blocks import Block, Code, Table, Text
from .context import ReportContext, Section
from .words import count_noun

PACKAGES = ("unboxed", "torch", "numpy", "pillow")


def build(context: ReportContext) -> Sequence[Block]:
    box, source = context.box, context.data
    weights_hash = weights_sha256(box.model)
    facts = {"command": context.command, "seed": context.seed, "weights": weights_hash, "versions": package_versions()}
    context.facts["reproduce"] = facts
    rows = [
        ("model", type(box.model).__name__),
        ("weights (SHA-256)", weights_hash[:16]),
        ("inputs", str(box.inputs)),
        ("outputs", box.outputs),
        ("data", f"{source.name}, {count_noun(len(context.survey.rows), 'example')} of {len(source):,}"),
        ("judge", type(context.judge.model).__name__ if context.judge is not None else "none"),
        ("device", str(box.device)),
        ("seed", str(context.seed)),
        *package_versions().items(),
    ]
    blocks: list[Block] = [Text("The same command on the same versions and device gives the same page.")]
    blocks.append(Code(context.command or python_call(context)))
    blocks.append(Table(("what", "which"), rows))
    return blocks


def python_call(context: ReportContext) -> str:
    """The Python call that made this page."""
    judge = ", judge=judge" if context.judge is not None else ""
    return f'import unboxed as ub\n\nub.report(box, data, "out/"{judge}, seed={context.seed})'


def package_versions() -> dict[str, str]:
    by_package = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:
            by_package[package] = "not installed as a package"
    return by_package


@torch.no_grad()
def weights_sha256(model: nn.Module) -> str:
    """SHA-256 of the names and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted({**dict(model.named_parameters()), **dict(model.named_buffers())}.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


SECTION = Section("How to reproduce it", "reproduce", build)
