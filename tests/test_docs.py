"""Places that docs/architecture.md names exist, and rows of docs/scripts.md and docs/failure-modes.md name their tests."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TRAINER = ROOT / "trainer" / "shoal"
ROWS = [
    line.strip("| ").split(" | ")
    for line in (ROOT / "docs" / "architecture.md").read_text().partition("## Where is ...")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| what | where |")
]


def names(path: Path) -> set[str]:
    found, functions = set(), ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found.add(node.name)
            found |= {f"{node.name}.{below.name}" for below in node.body if isinstance(below, functions)}
        elif isinstance(node, functions):
            found.add(node.name)
    return found


@pytest.mark.parametrize(("what", "where"), ROWS, ids=[what for what, _ in ROWS])
def test_what_the_architecture_points_at_is_there(what, where):
    pointed = re.findall(r"`([^`]+)`", where)
    files = [path if (path := ROOT / word).exists() else TRAINER / word for word in pointed if word.endswith(".py")]
    known = set()
    for path in files:
        beside = path if path.exists() else files[0].parent / path.name
        assert beside.exists(), f"{what}: {path.name}"
        known |= names(beside)
    missing = {word for word in pointed if not word.endswith(".py")} - known
    assert not missing, f"{what}: {missing}"


def test_the_table_names_what_a_reader_looks_for():
    wanted = {"handing out a task", "breaking a lease", "applying a push", "taking a snapshot", "replaying"}
    assert wanted <= {what for what, _ in ROWS}


HEADS = (
    "| in the script |",
    "| difference |",
    "| what fails |",
    "| what fails or is done |",
    "| what is too large |",
    "| what a tenant does |",
)
STATEMENTS = [
    line
    for page in ("scripts.md", "failure-modes.md")
    for line in (ROOT / "docs" / page).read_text().splitlines()
    if line.startswith("| ") and not line.startswith(HEADS)
]


@pytest.mark.parametrize("line", STATEMENTS, ids=[line[2:50] for line in STATEMENTS])
def test_what_the_pages_on_scripts_and_failures_say_is_shown_by_a_test(line):
    shown = re.search(r"<!-- (\S+)::(\S+) -->$", line)
    assert shown, "no test is named"
    path, name = ROOT / shown[1], shown[2]
    assert path.exists()
    tests = {known for known in names(path) if known.startswith("test_")}
    assert tests if name == "*" else name in tests
