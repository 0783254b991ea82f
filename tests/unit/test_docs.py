"""Links, length and figures of README and the pages in docs."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import deformable_detr

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    ROOT / "configs" / "README.md",
    ROOT / "ops" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
MAX_README_LINES = 180
MEASURED = {"plain PyTorch", "compiled", "ratio", "parameters"}  # columns with figures of ours


def prose(page: Path) -> str:
    """Return a page without its fenced blocks."""
    text = page.read_text(encoding="utf-8")
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def table_rows(page: Path) -> list[dict[str, str]]:
    """Return the rows of all tables of a page, cells by the head of their column."""
    rows = []
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE):
        head, _, *body = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
        ]
        rows += [dict(zip(head, cells, strict=True)) for cells in body]
    return rows


def figures(row: dict[str, str]) -> tuple[str, ...]:
    """Return the name of a row, without what stands in brackets, and its figures."""
    name = next(iter(row.values())).split(" (")[0]
    return name, *(f"{head}: {row[head]}" for head in sorted(MEASURED & row.keys()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_internal_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert wrong == []


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_README_LINES


@pytest.mark.parametrize("page", ["README.md", "docs/models.md"])
def test_quoted_figures_are_those_of_the_benchmarks(page: str) -> None:
    maintained = {figures(row) for row in table_rows(ROOT / "docs" / "benchmarks.md")}
    quoted = [figures(row) for row in table_rows(ROOT / page) if MEASURED & row.keys()]
    assert quoted
    assert [row for row in quoted if row not in maintained] == []


def test_citation_has_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {deformable_detr.__version__}\n" in citation


def test_every_public_name_is_on_the_api_page() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in deformable_detr.__all__ if f".{name}" not in page] == []


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_site_builds_strictly_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    pages = {path: path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")}
    loaded = re.compile(
        r"""<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)=["']?(?:https?:)?//"""
    )
    assert [path.name for path, page in pages.items() if loaded.search(page)] == []
    architecture = pages[tmp_path / "architecture.html"]
    assert 'href="source/tests/unit/test_layering.py.html"' in architecture
    assert (tmp_path / "source" / "tests" / "unit" / "test_layering.py.html").is_file()
