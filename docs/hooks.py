"""MkDocs hook: links to files outside `docs` lead to pages that show these files.

In a repository, pages link to sources as `../deformable_detr/...`. The site has no such files, so
each linked file becomes a page below `source`. A link to a folder becomes plain text.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")
LANGUAGES = {".py": "python", ".cpp": "cpp", ".cuh": "cuda", ".sh": "bash", ".md": "markdown"}


def outside_path(page: str, link: str) -> str | None:
    """Return the path in the repository that a page links to, or None for one within `docs`."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def source_page(path: str) -> str:
    """Return the address of the page that shows a file of the repository."""
    return f"source/{path}.md"


def show(path: str) -> str:
    """Return a page with the content of a file, left out of the search."""
    language = LANGUAGES.get(Path(path).suffix, "text")
    text = (ROOT / path).read_text(encoding="utf-8")
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n`````{language}\n{text}`````\n"


def on_files(files: Files, config: Any) -> Files:
    """Add a page for each file outside `docs` that a page links to."""
    paths: set[str] = set()
    for file in files.documentation_pages():
        for _, link, _ in LINK.findall(file.content_string):
            path = outside_path(file.src_uri, link)
            if path is None:
                continue
            if not (ROOT / path).exists():
                raise PluginError(f"{file.src_uri}: {link} does not exist")
            if (ROOT / path).is_file():
                paths.add(path)
    for path in sorted(paths):
        files.append(File.generated(config, source_page(path), content=show(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to files outside `docs` lead to their pages."""
    uri = page.file.src_uri
    if uri.startswith("source/"):
        return markdown

    def replace(match: re.Match[str]) -> str:
        text, link, _ = match.groups()
        path = outside_path(uri, link)
        if path is None:
            return match[0]
        if not (ROOT / path).is_file():
            return text
        return f"[{text}]({posixpath.relpath(source_page(path), posixpath.dirname(uri) or '.')})"

    return LINK.sub(replace, markdown)
