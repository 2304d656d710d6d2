"""How to make this page again: the command, the seed, the versions, the data, and a digest of the weights."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from ..checkpointing import weights_digest
from . import chapters
from .blocks import Block, Code, Paragraph, Table
from .context import ReportContext, Section
from .finding import Finding
from .words import count_noun

REPORTED_PACKAGES = ("unboxed", "torch", "numpy", "pillow")


@dataclass(frozen=True, eq=False, kw_only=True)
class ReproduceFinding(Finding):
    """All that makes the page the same again."""

    command: str | None
    seed: int
    weights: str  # SHA-256
    versions: dict[str, str]
    model: str
    inputs: str
    outputs: str
    data: str
    judge: str
    device: str


def find(context: ReportContext) -> ReproduceFinding:
    box, source, judge = context.box, context.data, context.judge
    return ReproduceFinding(
        answer="The command, the seed, the versions and a digest of the weights, to make this page again.",
        command=context.command,
        seed=context.seed,
        weights=weights_digest(box.model),
        versions=installed_package_versions(),
        model=type(box.model).__name__,
        inputs=str(box.inputs),
        outputs=box.outputs,
        data=f"{source.name}, {count_noun(len(context.survey.rows), 'example')} of {len(source):,}",
        judge=type(judge.model).__name__ if judge is not None else "none",
        device=str(box.device),
    )


def show(finding: ReproduceFinding) -> list[Block]:
    rows = [
        ("model", finding.model),
        ("weights (SHA-256)", finding.weights[:16]),
        ("inputs", finding.inputs),
        ("outputs", finding.outputs),
        ("data", finding.data),
        ("judge", finding.judge),
        ("device", finding.device),
        ("seed", str(finding.seed)),
        *finding.versions.items(),
    ]
    lead = "The same command on the same versions and device gives the same page."
    return [Paragraph(lead), Code(finding.command or reproducing_python_call(finding)), Table(("what", "value"), rows)]


def reproducing_python_call(finding: ReproduceFinding) -> str:
    """The Python call that makes this page."""
    judge = ", judge=judge" if finding.judge != "none" else ""
    return f'import unboxed as ub\n\nub.report(box, data, "out/"{judge}, seed={finding.seed})'


def installed_package_versions() -> dict[str, str]:
    by_package = {"Python": platform.python_version()}
    for package in REPORTED_PACKAGES:
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:
            by_package[package] = "not installed as a package"
    return by_package


SECTION = Section("How to reproduce it", "reproduce", find, show, chapter=chapters.ABOUT, texts=True)
