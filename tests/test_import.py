"""The public face: quick to import, complete, and free of what is optional."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import unboxed

HEAVY = ("torch", "numpy", "matplotlib", "PIL", "sklearn", "scipy")
EXTRAS = (
    "lightning", "pytorch_lightning", "tensorboard", "transformers",
    "captum", "hypothesis", "playwright", "torchvision",
)
STUB = Path(unboxed.__file__).with_suffix(".pyi")
NAMES = [a.asname or a.name for n in ast.parse(STUB.read_text()).body if isinstance(n, ast.ImportFrom) for a in n.names]


def python(source: str) -> str:
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_is_light() -> None:
    assert python(f"import sys, unboxed; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


def test_errors_are_light() -> None:
    assert python(f"import sys, unboxed.errors; print([m for m in {HEAVY} if m in sys.modules])") == "[]"


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_the_stub_resolves(name: str) -> None:
    assert getattr(unboxed, name) is not None


def test_the_face_is_the_stub() -> None:
    assert sorted(NAMES) == sorted(unboxed.__all__) == dir(unboxed)


def test_names_that_are_also_packages_stay_functions() -> None:
    """`from unboxed.report import ...` must not put the package in the place of the function."""
    assert python("import unboxed, unboxed.report.words; print(callable(unboxed.report))") == "True"


def test_every_module_imports_without_the_extras() -> None:
    source = f"""
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({EXTRAS}))
import unboxed
from unboxed.errors import MissingError
failed = []
for module in pkgutil.walk_packages(unboxed.__path__, "unboxed."):
    if module.name.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.name)
    except MissingError:
        pass
    except ImportError as error:
        failed.append(f"{{module.name}}: {{error}}")
print(failed)
"""
    assert python(source) == "[]"
