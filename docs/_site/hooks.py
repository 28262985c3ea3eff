"""Hooks of mkdocs: pages that are made from other files of the repository, and links between them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from shoal.api.crd import crd

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"} | {
    str(path.relative_to(ROOT)): str(path.relative_to(ROOT)) for path in sorted((ROOT / "examples").rglob("README.md"))
}
"""Files beside `docs/` that are pages of the site: path in the repository -> path in the site."""
TRAINER = """# API of shoal.trainer

What a training script imports.

::: shoal.trainer
    options:
      members: [join, Job, Refused]
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    for source, target in PAGES.items():
        files.append(File.generated(config, target, content=_links((ROOT / source).read_text(), source)))
    files.append(File.generated(config, "reference/trainer.md", content=TRAINER))
    files.append(File.generated(config, "reference/trainingjob.md", content="\n".join(_manifest())))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point links that leave `docs/` at the pages of the site."""
    if page.file.abs_src_path is None:
        return markdown
    return _links(markdown, f"docs/{page.file.src_uri}")


def _links(markdown: str, source: str) -> str:
    """Return the text with its relative links as the site has them.

    Args:
        markdown: The text of a page.
        source: Its path in the repository.
    """

    def fixed(match: re.Match[str]) -> str:
        path, anchor = match.group(2), match.group(3) or ""
        there = _normal(Path(source).parent / path)
        wanted = PAGES.get(there, there.removeprefix("docs/") if there.startswith("docs/") else "")
        if not wanted and (ROOT / there).exists():
            return f"{match.group(1)} (`{there}`)"
        if not wanted:
            return match.group()  # a broken link, which mkdocs reports
        here = PAGES.get(source, source.removeprefix("docs/"))
        up = "../" * here.count("/")
        return f"[{match.group(1)}]({up}{wanted}{anchor})"

    return re.sub(r"\[([^\]\n]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)", fixed, markdown)


def _normal(path: Path) -> str:
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _manifest() -> Iterator[str]:
    """Yield the lines of the reference of a TrainingJob, from the schema of its definition."""
    definition = crd()
    version = definition["spec"]["versions"][0]
    yield f"# TrainingJob ({definition['spec']['group']}/{version['name']})"
    yield ""
    yield version["schema"]["openAPIV3Schema"].get("description", "")
    for part in ("spec", "status"):
        yield f"\n## {part}\n"
        yield "| field | type | default | meaning |"
        yield "|---|---|---|---|"
        yield from _fields(version["schema"]["openAPIV3Schema"]["properties"][part], part)


def _fields(schema: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        kind = field.get("type", "integer or string" if field.get("x-kubernetes-int-or-string") else "any")
        default = f"`{field['default']}`" if "default" in field else ""
        text = " ".join(str(field.get("description", "")).split()).replace("|", "\\|").replace("<", "&lt;")
        yield f"| `{here}` | {kind} | {default} | {text} |"
        inner = field.get("items", field) if kind == "array" else field
        yield from _fields(inner, f"{here}[]" if kind == "array" else here)
