"""The images' Dockerfiles, whose instructions the tests run by hand: no image builder is available here."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from tests.deploy.rendered import DEPLOY, ROOT, arguments

IMAGES = sorted(path.parent.name for path in (DEPLOY / "images").glob("*/Dockerfile"))


@dataclass
class Stage:
    """A FROM instruction and the instructions that follow it."""

    base: str
    name: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [rest for word, rest in self.steps if word == instruction]


def stages(image: str) -> list[Stage]:
    found: list[Stage] = []
    for line in (DEPLOY / "images" / image / "Dockerfile").read_text().splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found.append(Stage(base, name))
        elif line and word != "#":
            found[-1].steps.append((word, rest))
    return found


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_pinned_and_runs_as_an_unprivileged_user(image):
    build, final = stages(image)
    assert build.base == final.base
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-[a-z]+", final.base)
    assert final.all("USER") == ["65532:65532"]
    assert final.all("RUN") == final.all("ADD") == []
    assert [rest for rest in final.all("COPY") if "--from=build" not in rest] == []
    # No instruction is interpreted by a shell.
    assert all(isinstance(json.loads(rest), list) for rest in build.all("RUN") + final.all("ENTRYPOINT"))


def ignored(path: str) -> bool:
    """Return whether .dockerignore excludes a path from the build context: the last matching line decides."""
    kept = True
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    for line in lines:
        pattern = line.removeprefix("!")
        parts = path.split("/")
        above = {"/".join(parts[: number + 1]) for number in range(len(parts))}
        if pattern.startswith("**/"):
            fits = any(fnmatch(part, pattern[3:]) for part in parts)
        else:
            fits = any(fnmatch(each, pattern) for each in above)
        if fits:
            kept = line.startswith("!")
    return not kept


def context(folder: Path) -> Path:
    """Copy the build context into a folder and return it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if not ignored(name) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def test_the_builder_gets_the_source_and_nothing_else(tmp_path):
    assert {path.name for path in context(tmp_path).iterdir()} == {
        "pyproject.toml", "README.md", "LICENSE", "sdk", "operator", "trainer",
    }  # fmt: skip
    assert ignored(".git/config")
    assert ignored("sdk/shoal/api/__pycache__/job.cpython-311.pyc")


def built(image: str, folder: Path, *, beside: bool = False) -> Path:
    """Run the Dockerfile's steps and return the environment's path.

    Args:
        beside: Take Shoal's dependencies from this Python's packages instead of downloading them.
    """
    sent, work, made = context(folder / "sent"), folder / "work", folder / "opt"
    work.mkdir()
    build, final = stages(image)
    for word, rest in build.steps:
        if word == "COPY":
            *sources, target = shlex.split(rest)
            for source in sources:
                copy = shutil.copytree if (sent / source).is_dir() else shutil.copyfile
                copy(sent / source, work / target / (source if target == "./" else ""))
        elif word == "RUN":
            run([each.replace("/opt/shoal", str(made / "shoal")) for each in json.loads(rest)], work, beside=beside)
    assert [rest.split()[-2:] for rest in final.all("COPY")] == [["/opt/shoal", "/opt/shoal"]]
    return made / "shoal"


def run(command: list[str], folder: Path, *, beside: bool) -> None:
    if command[0] == "python":
        command = [sys.executable, *command[1:]]
    if beside and "install" in command:
        command = [*command, "--no-deps"]
    done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    if beside and "venv" in command:
        (packages,) = (Path(command[-1]) / "lib").glob("python*/site-packages")
        here = [path for path in sys.path if path.endswith("site-packages")]
        # This path includes the editable install of this checkout; found first, it would be tested instead of the built package.
        (packages / "beside.pth").write_text("\n".join(here))


def start(image: str, environment: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the image's entry point with the image's variables only."""
    final = stages(image)[-1]
    variables = dict(pair.split("=", 1) for line in final.all("ENV") for pair in line.split())
    path = variables["PATH"].replace("/opt/shoal", str(environment))
    (entry,) = final.all("ENTRYPOINT")
    command = [*json.loads(entry), *arguments]
    program = shutil.which(command[0], path=path)
    assert program is not None
    assert Path(program).is_relative_to(environment)
    return subprocess.run(
        [program, *command[1:]], cwd=folder, check=False, capture_output=True, text=True,
        env={**variables, "PATH": path},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_operators_image_has_what_the_manifests_start(tmp_path):
    environment = built("operator", tmp_path)
    helped = start("operator", environment, tmp_path, "--help")
    assert helped.returncode == 0, helped.stderr
    # The manifests are read unrendered: without Kubernetes there is no kustomize on this machine either.
    written = [(DEPLOY / "base" / name).read_text() for name in ("operator.yaml", "setup.yaml")]
    objects = [each for text in written for each in yaml.safe_load_all(text)]
    for name in ("shoal-operator", "shoal-setup"):
        python, flag, module, *options = arguments(objects, name)
        assert (python, flag) == ("python", "-m")
        asked = subprocess.run(
            [str(environment / "bin" / "python"), "-m", module, *options, "--help"],
            cwd=tmp_path, check=False, capture_output=True, text=True, env={},
        )  # fmt: skip
        assert asked.returncode == 0, asked.stderr
    there = {path.name for path in environment.glob("lib/python*/site-packages/*")}
    assert {"kopf", "kubernetes", "cryptography"} <= there
    assert not there & {"torch", "pip", "pytest"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_trainers_image_starts_a_command(tmp_path):
    environment = built("trainer", tmp_path, beside=True)
    assert start("trainer", environment, tmp_path, "true").returncode == 0
    assert start("trainer", environment, tmp_path, "false").returncode == 1
    where = "import shoal.pserver, shoal.trainer as t, torch; print(t.__file__)"
    said = start("trainer", environment, tmp_path, "python", "-c", where)
    assert Path(said.stdout.strip()).is_relative_to(environment), said.stderr
    for role in ("master", "pserver"):
        helped = start("trainer", environment, tmp_path, "python", "-m", f"shoal.{role}", "--help")
        assert helped.returncode == 0, helped.stderr
