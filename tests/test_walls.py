"""The rules of the repository that a program can check."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(
    path for wing in ("sdk", "operator", "trainer", "benchmarks", "examples") for path in (ROOT / wing).rglob("*.py")
)
MODULES = sorted(
    ".".join(path.relative_to(ROOT / wing).with_suffix("").parts).removesuffix(".__init__")
    for wing in ("sdk", "trainer")
    for path in (ROOT / wing).rglob("*.py")
    if path.name != "__main__.py"
)


def test_nothing_shadows_the_standard_librarys_operator():
    assert not (ROOT / "operator" / "__init__.py").exists()
    for wing in ("sdk", "operator", "trainer"):
        assert not (ROOT / wing / "shoal" / "__init__.py").exists(), "shoal is a namespace"


def test_the_import_contracts_are_kept():
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([str(program)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", ["shoal.master.__main__", "shoal.cli.main", "shoal.local.runner", "shoal.api"])
def test_what_must_start_fast_imports_no_torch(module):
    script = f"import sys, {module}; sys.exit(bool({{'torch', 'numpy', 'pandas'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_short_or_give_the_reason(path):
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not tree.body, "a module has a docstring with its purpose"
    if len(text.splitlines()) > 500:
        assert "One module" in (ast.get_docstring(tree) or ""), (
            f"{path.name} is over 500 lines and its docstring gives no reason"
        )
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            has_reason = "One function" in (ast.get_docstring(node) or "")
            assert node.end_lineno - node.lineno < 60 or has_reason, (
                f"{path.name}: {node.name} is over 60 lines and its docstring gives no reason"
            )


@pytest.mark.parametrize("name", MODULES)
def test_what_is_public_exists(name):
    module = importlib.import_module(name)
    missing = [public for public in getattr(module, "__all__", []) if not hasattr(module, public)]
    assert not missing


def test_what_a_script_may_import():
    trainer = importlib.import_module("shoal.trainer")
    assert trainer.__all__ == ["Job", "Refused", "join"]
