"""The package's sources, each parsed and walked once, for the tests of the source itself."""

from __future__ import annotations

import ast
import gc
from functools import cache
from pathlib import Path

import unboxed

ROOT = Path(unboxed.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))


@cache
def trees() -> dict[Path, ast.Module]:
    """Garbage collection, which would go through these 700,000 nodes again and again, passes over them."""
    gc.disable()
    try:
        return {file: ast.parse(text(file)) for file in FILES}
    finally:
        gc.freeze()
        gc.enable()


def text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def tree(file: Path) -> ast.Module:
    return trees()[file]


@cache
def nodes(file: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree(file)))


def nodes_of(source: str) -> tuple[ast.AST, ...]:
    """Of a planted source."""
    return tuple(ast.walk(ast.parse(source)))


def dotted_name(node: ast.expr) -> str:
    """ "a.b.c", as `ast.unparse` has it, for names and attributes of names; "" for any other expression."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id])) if isinstance(node, ast.Name) else ""
