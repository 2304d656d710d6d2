"""The public face: quick to import, complete, and free of what is optional."""

import ast
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import unboxed
import unboxed as ub

HEAVY = ("torch", "numpy", "matplotlib", "PIL", "sklearn", "scipy")
EXTRAS = (
    "lightning",
    "pytorch_lightning",
    "tensorboard",
    "transformers",
    "captum",
    "hypothesis",
    "playwright",
    "torchvision",
    "wandb",
    "gensim",
)
STUB = Path(unboxed.__file__).with_suffix(".pyi")
NAMES = [a.asname or a.name for n in ast.parse(STUB.read_text()).body if isinstance(n, ast.ImportFrom) for a in n.names]


def python(source: str) -> str:
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_and_errors_are_light() -> None:
    heavy = f"[m for m in {HEAVY} if m in sys.modules]"
    assert python(f"import sys, unboxed; print({heavy}); import unboxed.errors; print({heavy})") == "[]\n[]"


def test_every_name_of_the_stub_resolves() -> None:
    assert [name for name in NAMES if getattr(unboxed, name, None) is None] == []


def test_the_face_is_the_stub() -> None:
    assert sorted(NAMES) == sorted(unboxed.__all__) == dir(unboxed)


FRESH = f"""
import importlib, json, pkgutil, random, sys
import unboxed, unboxed.cli.explain
found = {{"distributions": "scipy.stats" in sys.modules}}
box = unboxed.Box(*unboxed.zoo.load("digits-cnn"))
unboxed.attribution.gradient(box, box.noise(2))
found["compiler"] = [m for m in ("torch._dynamo", "sympy") if m in sys.modules]
import unboxed.report.words
found["report"] = callable(unboxed.report)
from unboxed.training import ConfusedLogits
ConfusedLogits(to="x")
unboxed.testing
found["extras"] = [name for name in {EXTRAS} if name in sys.modules]

import numpy
from unboxed.engine.read import embedding
random.seed(1), numpy.random.seed(1)
before = random.getstate(), numpy.random.get_state()[1].copy()
embedding.fit_tsne(numpy.random.default_rng(0).normal(size=(20, 60)))
found["drew"] = random.getstate() != before[0] or bool((numpy.random.get_state()[1] != before[1]).any())

sys.modules.update(dict.fromkeys({EXTRAS}))
from unboxed.errors import MissingPackageError
found["failed"] = []
for module in pkgutil.walk_packages(unboxed.__path__, "unboxed."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except MissingPackageError:
            pass
        except ImportError as error:
            found["failed"].append(f"{{module.name}}: {{error}}")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """What a new process finds; the extras are taken from it before it imports every module."""
    return json.loads(python(FRESH))  # type: ignore[no-any-return]


def test_the_explain_command_imports_no_distributions(fresh: dict[str, Any]) -> None:
    """They take half a second, and only some of what it imports draws on them."""
    assert fresh["distributions"] is False


def test_gradients_import_no_compiler(fresh: dict[str, Any]) -> None:
    """It takes over a second, and from then on each call of a box would hold it off; its algebra takes half of one."""
    assert fresh["compiler"] == []


def test_names_that_are_also_packages_stay_functions(fresh: dict[str, Any]) -> None:
    """`from unboxed.report import ...` must not put the package in the place of the function."""
    assert fresh["report"] is True


def test_the_core_imports_no_extra(fresh: dict[str, Any]) -> None:
    """Nor does what watches a training loop, before it is given to a trainer, or `testing` before its strategies."""
    assert fresh["extras"] == []


def test_loading_the_library_of_tsne_draws_nothing(fresh: dict[str, Any]) -> None:
    assert fresh["drew"] is False


def test_every_module_imports_without_the_extras(fresh: dict[str, Any]) -> None:
    assert fresh["failed"] == []


def test_dir_shows_what_is_public_and_nothing_else() -> None:
    namespaces = [name for name in dir(ub) if isinstance(getattr(ub, name), types.ModuleType)]
    assert {"attribution", "concepts", "influence", "plots", "zoo"} <= {*namespaces}
    for name in namespaces:
        if name == "errors":
            continue
        namespace = getattr(ub, name)
        listed = dir(namespace)
        assert [n for n in listed if n.startswith("_")] == []
        assert [n for n in listed if not hasattr(namespace, n)] == []
        assert "dir_of_exports" not in listed
        methods = {c.method.__name__ for c in ub.cards() if c.method.__module__.startswith(f"unboxed.{name}.")}
        assert methods <= {*listed}, name
