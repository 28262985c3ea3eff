"""The sources of a job whose image does not contain its script: files, or one function.

On a cluster they are a ConfigMap that belongs to the job, mounted read-only as the trainers' working directory. On one
machine they are files in a folder of the job.
"""

from __future__ import annotations

import ast
import builtins
import dis
import hashlib
import inspect
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import CodeType
from typing import Any, Final

from shoal.sdk.errors import InvalidJobError

__all__ = ["FOLDER", "LARGEST", "Sources", "config_map", "mounted", "sources_of_function", "sources_of_script"]

LARGEST: Final = 900 << 10
"""Most bytes of all files together: a ConfigMap may have 1 MiB."""
_MOST_FILES: Final = 200
FOLDER: Final = "/shoal/source"
"""Path at which the trainers' containers see the files; it is their working directory."""
_VOLUME: Final = "shoal-source"
_CONTAINER: Final = "trainer"


@dataclass(frozen=True)
class Sources:
    """Files of a job.

    Attributes:
        files: Content by path, relative to the working directory, with ``/`` as separator.
        main: Path of the file that runs.
    """

    files: Mapping[str, bytes]
    main: str

    @property
    def digest(self) -> str:
        """Digest of names and contents: ten hexadecimal digits."""
        found = hashlib.sha256()
        for path, content in sorted(self.files.items()):
            found.update(f"{path}\0{len(content)}\0".encode() + content)
        return found.hexdigest()[:10]


def sources_of_script(script: str | Path, files: Sequence[str | Path]) -> Sources:
    """Read a script and further files or folders.

    A path is shipped relative to the script's folder; one outside of it is shipped under its own name.

    Raises:
        InvalidJobError: A file does not exist or cannot be read, or the files are too large.
    """
    path = Path(script)
    if path.suffix != ".py":
        raise InvalidJobError(f"{script} is not a Python script (.py); run another program by command=")
    found = _read([path, *map(Path, files)], path.resolve().parent)
    return Sources(found, path.name)


def sources_of_function(function: Any, arguments: Mapping[str, Any], files: Sequence[str | Path]) -> Sources:
    """Write a function as a script that calls it.

    Args:
        function: A function that uses nothing from outside of its body: its imports are in it.
        arguments: Keyword arguments of the call: numbers, texts, booleans, None, and lists and mappings of them.
        files: Further files or folders, as in `sources_of_script`.

    Raises:
        InvalidJobError: The function cannot be run on its own, an argument is not plain data, or the files are too large.
    """
    source = _source_of(function)
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise InvalidJobError(f"{function.__name__}: {error}; give its arguments as arguments={{...}}") from None
    try:
        values = json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError) as error:
        text = f"{function.__name__}: an argument is not plain data ({error}); numbers, texts, lists and mappings are"
        raise InvalidJobError(text) from None
    main = f"{function.__name__}.py"
    call = f"{function.__name__}(**json.loads({values!r}))"
    script = f'{source}\n\nif __name__ == "__main__":\n    import json\n\n    {call}\n'
    found = _read(list(map(Path, files)), Path.cwd())
    if main in found:
        raise InvalidJobError(f"{main} is among files=, and the function's own file has that name; rename one of them")
    return Sources(_bounded({main: script.encode(), **found}), main)


def _source_of(function: Any) -> str:
    name = getattr(function, "__name__", repr(function))
    if not inspect.isfunction(function) or name == "<lambda>":
        raise InvalidJobError(f"{name} is not a function that was defined by `def` at the top of a module or a cell")
    if hasattr(function, "__wrapped__"):
        raise InvalidJobError(f"{name} has a decorator, which would be missing in the job; submit the plain function")
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise InvalidJobError(f"the source of {name} is not available; write it into a file and use script=") from None
    tree = ast.parse(source).body[0]
    if isinstance(tree, ast.AsyncFunctionDef):
        raise InvalidJobError(f"{name} is a coroutine function; submit a plain function")
    if getattr(tree, "decorator_list", None):
        raise InvalidJobError(f"{name} has a decorator, which would be missing in the job; submit the plain function")
    outside = sorted({*function.__code__.co_freevars, *_globals_of(function.__code__)} - {name, *dir(builtins)})
    if outside:
        fix = "import and define them in the function, or pass plain values by arguments="
        raise InvalidJobError(f"{name} uses {', '.join(outside)} from outside of its body; {fix}")
    return source


def _globals_of(code: CodeType) -> set[str]:
    """Return the names that a function, and the functions within it, load from its module."""
    found = {each.argval for each in dis.get_instructions(code) if each.opname in {"LOAD_GLOBAL", "LOAD_NAME"}}
    return found.union(*(_globals_of(each) for each in code.co_consts if isinstance(each, CodeType)))


def _read(paths: Sequence[Path], root: Path) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in paths:
        for each in _below(path):
            resolved = each.resolve()
            inside = resolved.is_relative_to(root)
            name = str(PurePosixPath(resolved.relative_to(root) if inside else path.name / each.relative_to(path)))
            if name in found:
                raise InvalidJobError(f"two of the files would be {name}; rename one of them")
            try:
                if each.stat().st_size > LARGEST:
                    raise _too_large(each.stat().st_size, name)
                found[name] = each.read_bytes()
            except OSError as error:
                raise InvalidJobError(f"{each} cannot be read: {error.strerror}") from None
            _bounded(found)
    return found


def _below(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(
            each
            for each in path.rglob("*")
            if each.is_file() and "__pycache__" not in each.parts and not each.name.startswith(".")
        )
    if not path.exists():
        raise InvalidJobError(f"{path} does not exist")
    return [path]


def _bounded(files: dict[str, bytes]) -> dict[str, bytes]:
    size = sum(len(path) + len(content) for path, content in files.items())
    if size > LARGEST:
        raise _too_large(size, max(files, key=lambda path: len(files[path])))
    if len(files) > _MOST_FILES:
        raise InvalidJobError(
            f"{len(files)} files are too many; {_MOST_FILES} can be shipped: build an image with them"
        )
    return files


def _too_large(size: int, largest: str) -> InvalidJobError:
    return InvalidJobError(
        f"the files have {size:,} bytes, and {LARGEST:,} can be shipped (the largest is {largest}); put data on a volume "
        "or into a bucket, or build an image with the files and use command="
    )


def config_map(sources: Sources, job: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ConfigMap of the sources, which the API server deletes with the job.

    Args:
        sources: The files.
        job: The job as it was created, with its uid.
    """
    metadata = job["metadata"]
    owner = {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "blockOwnerDeletion": False,
    }
    text, binary = {}, {}
    for key, content in _keys(sources).values():
        try:
            text[key] = content.decode()
        except UnicodeDecodeError:
            binary[key] = _base64(content)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": config_map_name(metadata["name"], sources),
            "namespace": metadata["namespace"],
            "labels": {"app.kubernetes.io/managed-by": "shoal-sdk", "shoal.dev/job": metadata["name"]},
            "ownerReferences": [owner],
        },
        "immutable": True,
        **({"data": text} if text else {}),
        **({"binaryData": binary} if binary else {}),
    }


def config_map_name(job: str, sources: Sources) -> str:
    """Return the name of the ConfigMap of a job's sources."""
    return f"{job}-source-{sources.digest}"


def _base64(content: bytes) -> str:
    import base64  # noqa: PLC0415 - only for files that are not text

    return base64.b64encode(content).decode()


def _keys(sources: Sources) -> dict[str, tuple[str, bytes]]:
    """Return the key in the ConfigMap and the content, by path; a key cannot have a slash."""
    return {path: (f"file-{number}", content) for number, (path, content) in enumerate(sorted(sources.files.items()))}


def mounted(mapping: Mapping[str, Any], sources: Sources) -> dict[str, Any]:
    """Return a job's manifest with the sources mounted as the trainers' working directory.

    Raises:
        InvalidJobError: The manifest has a volume or a working directory of its own in the same place.
    """
    spec = dict(mapping["spec"])
    trainer = dict(spec.get("trainer", {}))
    template = dict(trainer.get("template", {}))
    pod = dict(template.get("spec", {}))
    containers = [dict(each) for each in pod.get("containers", [])]
    own = next((each for each in containers if each.get("name") == _CONTAINER), None)
    if own is None:
        own = {"name": _CONTAINER}
        containers.insert(0, own)
    if own.get("workingDir") not in {None, FOLDER}:
        raise InvalidJobError(
            f"the template sets workingDir {own['workingDir']}, and the script is shipped to {FOLDER}"
        )
    items = [{"key": key, "path": path} for path, (key, _) in _keys(sources).items()]
    name = config_map_name(mapping["metadata"]["name"], sources)
    own["workingDir"] = FOLDER
    own["volumeMounts"] = [*own.get("volumeMounts", []), {"name": _VOLUME, "mountPath": FOLDER, "readOnly": True}]
    volume = {"name": _VOLUME, "configMap": {"name": name, "items": items}}
    pod |= {"containers": containers, "volumes": [*pod.get("volumes", []), volume]}
    trainer["template"] = {**template, "spec": pod}
    return {**mapping, "spec": {**spec, "trainer": trainer}}
