"""What holds for the source itself: imports point down, no scope of the model stays open at a yield, files stay
short."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import torch

from contracts.sources import FILES, ROOT, dotted_name, nodes, nodes_of, text, tree

FAMILIES = {"activations", "synthesis", "attribution", "adversarial", "influence", "concepts", "language"}
TIERS = [
    {
        "errors", "cards", "settings", "spellings", "argument_names", "validation",
        "atomic_write", "checkpointing", "rng", "namespaces",
        "weight_files", "table_views", "autocast",
    },
    {"objectives", "inputs", "model"},
    {"box", "parameters"},
    {"engine"},
    {*FAMILIES, "data", "zoo"},
    {"robustness"},
    {"checks"},
    {
        "comparing", "diagnosis", "explaining", "loading", "plots", "report", "page", "testing", "training", "scale",
        "cli", "__main__",
    },
]  # fmt: skip
METHODS = {*FAMILIES, "robustness"}  # robustness is evaluated by attacks, so it lies above them
RANK = {room: i for i, tier in enumerate(TIERS) for room in tier}
SCOPES = (
    "isolated",
    "capturing_activations",
    "applying_rule",
    "seeded",
    "flags",
    "restore",
    "preserve",
    "grad",
    "inference_mode",
    "SharedDropoutMaskMode",
    "FinalOpRecorder",
    "stance",
    "ExitStack",
    "hook_safe_contexts",
    "_lock",
    "rng",
    "autocast",
    "straight_through_relus",
    "unoptimized",
    "record",
    "replay",
    "hooking_functional_ops",
)
HEAVY = {"torchvision", "timm", "zennit", "kronfluence", "torchattacks", "pytorch_grad_cam", "captum", "foolbox"}
DRAWS = {f"torch.{d}" for d in ("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial")}


def each_file(check: Callable[[Path], None]) -> Callable[[], None]:
    """One test of all files, which names every one that fails."""

    def test() -> None:
        found = list[str]()
        for file in FILES:
            try:
                check(file)
            except AssertionError as error:
                found.append(f"{file.relative_to(ROOT)}: {error}")
        assert found == []

    test.__doc__ = check.__doc__
    return test


def room(file: Path) -> str:
    """The top-level folder or file that it belongs to; "" for the package's own face."""
    first = file.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, wherever it is in the file; ours as `unboxed.room...`."""
    package = ["unboxed", *file.relative_to(ROOT).parts[:-1]]
    for node in nodes(file):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{stem}.{alias.name}") for alias in node.names)


def test_the_files_are_found() -> None:
    assert len(FILES) > 25
    assert FAMILIES & {room(f) for f in FILES}


@each_file
def test_imports_point_down(file: Path) -> None:
    """Ways in and views -> checks -> robustness -> families -> engine -> box -> objectives, inputs, model -> errors."""
    mine = room(file)
    if not mine:
        return
    assert mine in RANK, f"{mine} has no place in the design's layout"
    for line, name in imports(file):
        parts = name.split(".")
        if parts[0] != "unboxed" or parts[1] in (mine, "__version__"):
            continue
        assert parts[1] in RANK, f"line {line} imports {name}, which has no place in the layout"
        assert RANK[parts[1]] <= RANK[mine], f"line {line} imports {name}, which lies above"
        both = {parts[1], mine}
        evaluates = both & (FAMILIES - {"adversarial"}) and "robustness" in both
        assert not evaluates, f"line {line}: of the families, robustness imports adversarial alone"
        assert not both <= FAMILIES, f"line {line}: one family imports another; move what they share down to engine"
        assert not (both & METHODS and both & {"data", "zoo"}), f"line {line}: {mine} imports {name}"


@each_file
def test_no_torchvision(file: Path) -> None:
    found = [f"line {line}: {name}" for line, name in imports(file) if name.split(".")[0] in HEAVY]
    assert not found, found


@each_file
def test_no_assert(file: Path) -> None:
    """`python -O` drops them, and a user can't read them."""
    assert not [n.lineno for n in nodes(file) if isinstance(n, ast.Assert)]


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    yield from (n for n in nodes(file) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def own_yields(node: ast.AST, opened: tuple[str, ...] = ()) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, the `with` items that are open there) of each yield of a function, not of those defined inside it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, (ast.Yield, ast.YieldFrom)):
            yield child.lineno, opened
        inside = opened
        if isinstance(child, (ast.With, ast.AsyncWith)):
            inside = (*opened, *(ast.unparse(item.context_expr) for item in child.items))
        yield from own_yields(child, inside)


def is_scope(function: ast.FunctionDef) -> bool:
    return any("contextmanager" in ast.unparse(d) or d_name(d) == "fixture" for d in function.decorator_list)


def d_name(node: ast.expr) -> str:
    return ast.unparse(node).rpartition(".")[2]


@each_file
def test_no_scope_is_open_at_a_yield(file: Path) -> None:
    """A generator abandoned inside a hook, a rule, eval or a fork of the RNGs would act on its caller."""
    for function in functions(file):
        if is_scope(function):
            continue
        for line, opened in own_yields(function):
            bad = [
                w for w in opened if room(file) in {"model", "box", "engine", *METHODS} or any(s in w for s in SCOPES)
            ]
            assert not bad, f"line {line} of {function.name} yields inside `with {bad[0]}`"


@each_file
def test_only_model_hooks_modules(file: Path) -> None:
    """All that touches a module is in model/: there is one place to look when a trace is left."""
    if room(file) in ("model", "training", "testing"):  # training: callbacks; testing: awkward models
        return
    names = {n.attr for n in nodes(file) if isinstance(n, ast.Attribute)}
    assert not {n for n in names if n.startswith("register_") and n.endswith("hook")}
    assert not names & {"TorchFunctionMode", "TorchDispatchMode", "_forward_hooks", "_backward_hooks"}


@each_file
def test_no_draw_is_global(file: Path) -> None:
    """In the engine and the families every draw has its generator (model/state forks the global ones for the model)."""
    if room(file) not in {"engine", "inputs", "box", "objectives", "rng", *METHODS}:
        return
    for node in nodes(file):
        if not isinstance(node, ast.Call):
            continue
        called = dotted_name(node.func)
        assert not called.startswith(("np.random", "numpy.random", "random.")), f"line {node.lineno}: {called}"
        assert called not in ("torch.manual_seed", "torch.seed"), f"line {node.lineno}: {called}"
        if called in DRAWS:
            assert any(k.arg == "generator" for k in node.keywords), f"line {node.lineno}: {called} without a generator"


def docstring_lines(node: ast.AST) -> int:
    """The lines of all docstrings below a node: they teach, and need not be short."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    owners = [n for n in ast.walk(node) if isinstance(n, documented) and ast.get_docstring(n, clean=False)]
    return sum((n.body[0].end_lineno or 0) - n.body[0].lineno + 1 for n in owners)


@each_file
def test_files_and_functions_stay_short(file: Path) -> None:
    """Without their docstrings."""
    lines = len(text(file).splitlines()) - docstring_lines(tree(file))
    assert lines < 320, f"{lines} lines"
    for function in functions(file):
        length = (function.end_lineno or 0) - function.lineno + 1 - docstring_lines(function)
        assert length <= 60, f"{function.name} has {length} lines"


def code_lines(node: ast.FunctionDef) -> int:
    """The lines of a function from its first statement on, without its docstring."""
    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
    return (node.end_lineno or 0) - first.lineno + 1


def test_functions_are_short_as_a_rule() -> None:
    """Half of them have six lines or fewer, nine of ten 20."""
    lengths = sorted(code_lines(f) for file in FILES for f in functions(file))
    assert lengths[len(lengths) // 2] <= 6
    assert lengths[len(lengths) * 9 // 10] <= 20


@each_file
def test_errors_are_ours(file: Path) -> None:
    """What is raised on purpose derives from UnboxedError (or is a signal, or a re-raise)."""
    if room(file) == "testing":  # its models misbehave on purpose, its contracts raise AssertionError
        return
    ours = {n for n in vars(__import__("unboxed.errors", fromlist=["errors"])) if n.endswith(("Error", "Warning"))}
    allowed = {*ours, "Stop", "KeyboardInterrupt", "AttributeError", "NotImplementedError", "TypeError"}
    allowed.add("DownloadError")  # inside of data: becomes a DataError
    for node in nodes(file):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = d_name(node.exc.func)
            assert name in allowed or not name.endswith("Error"), f"line {node.lineno} raises {name}"


def test_the_checks_above_can_fail() -> None:
    """The checks above can fail: planted sources are caught."""
    with_scope = ast.parse("def f(box):\n    with box.isolated():\n        for i in range(3):\n            yield i\n")
    function = next(n for n in ast.walk(with_scope) if isinstance(n, ast.FunctionDef))
    assert list(own_yields(function)) == [(4, ("box.isolated()",))]
    assert not is_scope(function)
    assert any(s in "box.isolated()" for s in SCOPES)
    assert RANK["engine"] < RANK["attribution"] < RANK["report"]
    assert "unboxed.box.Box" in [name for _, name in imports(ROOT / "engine" / "optimize" / "loop.py")]


def counted_by_hand(source: Iterable[ast.AST]) -> list[int]:
    """The lines that issue a warning themselves, or count the calls up to whom it is for."""
    lines = []
    for node in source:
        if isinstance(node, ast.Call):
            issues = dotted_name(node.func) in ("warnings.warn", "warnings.warn_explicit")
            if issues or {k.arg for k in node.keywords} & {"stacklevel", "skip_file_prefixes"}:
                lines.append(node.lineno)
        elif isinstance(node, ast.arg) and node.arg == "stacklevel":
            lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "warnings":
            lines += [node.lineno] * any(alias.name.startswith("warn") for alias in node.names)
    return sorted(lines)


def test_warnings_go_through_one_function() -> None:
    """`errors.warn` finds the caller's line; a level counted by hand is wrong as soon as a call is put between."""
    found = {file.relative_to(ROOT): counted_by_hand(nodes(file)) for file in FILES if file != ROOT / "errors.py"}
    assert not {str(file): lines for file, lines in found.items() if lines}
    planted = "import warnings\nwarnings.warn('a', UserWarning, 3)\nfew(game, stacklevel=4)\ndef f(stacklevel): ...\n"
    assert counted_by_hand(nodes_of(planted + "from warnings import warn")) == [2, 3, 4, 5]


# -- modules keep their private names, and import each other in one direction -----------------------------------------


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_names(source: Iterable[ast.AST]) -> set[str]:
    """The private names that a file defines: functions, classes, variables, attributes of `self` and `cls`."""
    names = set[str]()
    for n in source:
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            names.add(n.name)
        elif isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
            names.add(n.id)
        elif isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store) and is_private(n.attr):
            names |= {n.attr} if dotted_name(n.value) in ("self", "cls") else set()
    return {name for name in names if is_private(name)}


def foreign_attributes(source: Collection[ast.AST], ours: set[str]) -> list[str]:
    """Private attributes of ours that another file defines; torch's own are no concern of ours."""
    names = ours - private_names(source)
    uses = [n for n in source if isinstance(n, ast.Attribute) and n.attr in names]
    return [f"line {n.lineno}: {ast.unparse(n)}" for n in uses if not hasattr(torch.Tensor, n.attr)]


def foreign_imports(package: str, names: Iterator[tuple[int, str]]) -> list[str]:
    """Imports of private names, and of private files (`_shared.py`) that lie in another folder."""
    found = []
    for line, name in names:
        parts = name.split(".")
        for i, part in enumerate(parts):
            of_a_file = i < len(parts) - 1 or name in MODULES
            allowed = of_a_file and ".".join(parts[:i]) == package
            if parts[0] == "unboxed" and is_private(part) and not allowed:
                found.append(f"line {line} imports {name}")
    return found


def dotted(file: Path) -> str:
    """The module's name: "unboxed.inputs.pixels"."""
    parts = ["unboxed", *file.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(file: Path) -> str:
    return ".".join(["unboxed", *file.relative_to(ROOT).parts[:-1]])


MODULES = {dotted(file): file for file in FILES}


@cache
def our_private_names() -> set[str]:
    return set[str]().union(*(private_names(nodes(file)) for file in FILES))


@each_file
def test_private_names_stay_in_their_module(file: Path) -> None:
    """What another module needs is public; a folder's own helpers may be files that start with _."""
    found = foreign_attributes(nodes(file), our_private_names()) + foreign_imports(package_of(file), imports(file))
    assert not found, found


def test_private_names_of_others_are_found() -> None:
    source = nodes_of("from ..box import _reopened\nbox._asked = 1\nself._own = x._version\nlayers._ops.x\nx._own\n")
    found = foreign_attributes(source, {"_asked", "_own", "_ops", "_version"})
    assert found == ["line 2: box._asked", "line 4: layers._ops"]
    names = [(1, "unboxed.box._reopened"), (2, "torch.utils._pytree"), (3, "unboxed.box.Box")]
    names += [(4, "unboxed.adversarial._shared.f"), (5, "unboxed.robustness._shared.f")]
    found = foreign_imports("unboxed.robustness", iter(names))
    assert [text.split()[1] for text in found] == ["1", "4"]


def import_graph() -> dict[str, set[str]]:
    """Which of our modules each one imports, wherever in the file, also for types alone."""
    graph = {name: set[str]() for name in MODULES}
    for name, file in MODULES.items():
        for _, imported in imports(file):
            target = imported if imported in MODULES else imported.rpartition(".")[0]
            if target in MODULES and target != name:
                graph[name].add(target)
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules of which each imports the next, and the last the first; empty where there are none."""
    sorter = TopologicalSorter(graph)
    try:
        sorter.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_circles() -> None:
    graph = import_graph()
    assert "unboxed.box" in graph["unboxed.engine.optimize.loop"]
    assert circle(graph) == []
    folders = {name: set[str]() for name in RANK}
    for name, targets in graph.items():
        for target in targets:
            mine, other = room(MODULES[name]), room(MODULES[target])
            if mine and other and mine != other:
                folders[mine].add(other)
    assert circle(folders) == []
    graph["unboxed.box"].add("unboxed.engine.optimize.loop")  # planted
    assert "unboxed.box" in circle(graph)


@pytest.mark.parametrize("folder", sorted({file.parent for file in FILES} - {ROOT}), ids=lambda f: f.name)
def test_a_folder_says_what_it_is_for(folder: Path) -> None:
    """In two lines or more: what the folder is for, and what moves in."""
    text = ast.get_docstring(tree(folder / "__init__.py")) or ""
    assert len([line for line in text.splitlines() if line]) >= 2, text
    assert re.search(r"\bmoves? in", text), text
