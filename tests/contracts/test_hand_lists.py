"""Nothing lists methods by hand: what needs several of them asks the cards."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator

from contracts.sources import FILES, ROOT, nodes, nodes_of
from unboxed.cards import FAMILIES, cards

MIN_METHODS = 3  # that make a list
OURS = [card for card in cards() if card.method.__module__.startswith("unboxed.")]
METHODS = {card.key for card in OURS}
WRITTEN = METHODS | {card.name for card in OURS}
ANY = "|".join(sorted(map(re.escape, METHODS), key=len, reverse=True))
IN_TEXT = re.compile(rf"\b(?:{ANY})\b(?:(?:, and |, or |, | and | or )(?:{ANY})\b){{{MIN_METHODS - 1},}}")

EXCEPTIONS = {f"{family}/__init__.py": "a family's face: it imports each of its methods" for family in FAMILIES} | {
    "robustness/gradient_masking.py": "the check compares these attacks: which of them should find more is its content",
    "report/texts.py": "its sections are three questions about texts, each answered by one method",
}


def docstrings(source: Collection[ast.AST]) -> set[int]:
    """The ids of the docstrings, which may name methods: they tell a reader where to turn."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    firsts = [n.body[0] for n in source if isinstance(n, owners) and n.body]
    return {id(first.value) for first in firsts if isinstance(first, ast.Expr)}


def method_of(node: ast.AST | None) -> str | None:
    """The method that an expression names: "pgd", pgd, adversarial.pgd, partial(pgd, ...)."""
    if isinstance(node, ast.Call):
        named = [method_of(n) for n in (node.func, *node.args)]
        return next((name for name in named if name is not None), None)
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) and node.value in WRITTEN else None
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
    return name if name in METHODS else None


def members(node: ast.AST) -> list[ast.expr | None]:
    """The members of a list, tuple or set, the keys and values of a dict."""
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [*node.elts]
    return [*node.keys, *node.values] if isinstance(node, ast.Dict) else []


def hand_lists(source: Collection[ast.AST]) -> Iterator[str]:
    """The places that name three methods or more, in a literal, a text or an import."""
    skipped = docstrings(source)
    for node in source:
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names} & METHODS
        else:
            names = {name for name in map(method_of, members(node)) if name is not None}
        if len(names) >= MIN_METHODS:
            yield f"line {node.lineno}: {', '.join(sorted(names))}"  # type: ignore[attr-defined]
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield from (f"line {node.lineno}: {match.group()}" for match in IN_TEXT.finditer(node.value))


def imported_methods(source: Collection[ast.AST], folder: str = "") -> set[str]:
    """The methods that a module in a folder of the package imports, each from its own file."""
    imports = [n for n in source if isinstance(n, ast.ImportFrom)]
    from_a_family = [n for n in imports if {folder * (n.level == 1), *(n.module or "").split(".")} & {*FAMILIES}]
    return {alias.name for n in from_a_family for alias in n.names} & METHODS


def test_no_module_lists_methods_by_hand() -> None:
    found = dict[str, list[str]]()
    for file in FILES:
        name = str(file.relative_to(ROOT))
        lists = [*hand_lists(nodes(file))]
        if len(imported := imported_methods(nodes(file), name.partition("/")[0])) >= MIN_METHODS:
            lists.append(f"imports {', '.join(sorted(imported))}")
        if lists:
            found[name] = lists
    assert {name: lists for name, lists in found.items() if name not in EXCEPTIONS} == {}
    assert EXCEPTIONS.keys() - found.keys() == set(), "these exceptions are not needed"


def test_hand_lists_are_found() -> None:
    for planted in (
        'A = {"fgsm": fgsm, "pgd": pgd, "bim": partial(bim, steps=2)}',
        "A = (adversarial.fgsm, adversarial.pgd, adversarial.bim)",
        'A = ["PGD", "FGSM", "APGD"]',
        'raise InputError(f"{name}: square, boundary and hop_skip_jump need no gradient")',
        "from ..adversarial import fgsm, pgd, square",
    ):
        assert len([*hand_lists(nodes_of(planted))]) == 1, planted
    for fine in ('"""pgd, fgsm or bim."""', 'A = {"pgd": pgd, "fgsm": fgsm}', 'A = "the gradient, or a patch"'):
        assert not [*hand_lists(nodes_of(fine))], fine
    source = nodes_of("from ..adversarial.fgsm import fgsm\nfrom ..adversarial.pgd import pgd\nfrom .x import gradient")
    assert imported_methods(source) == {"fgsm", "pgd"}
    assert imported_methods(source, "attribution") == {"fgsm", "pgd", "gradient"}
