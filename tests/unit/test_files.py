import ast
from pathlib import Path

import pytest

from deformable_detr.files import write_whole


def write(path: Path, text: str, error: BaseException | None = None) -> None:
    with write_whole(path) as temporary:
        temporary.write_text(text)
        if error is not None:
            raise error


def test_an_interrupted_write_leaves_only_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    write(path, "old")
    write(path, "new")
    with pytest.raises(KeyboardInterrupt):
        write(path, "ne", KeyboardInterrupt())
    assert path.read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


PACKAGE = Path(__file__).parents[2] / "deformable_detr"
WRITES = ("write_text", "write_bytes")
# Files that nobody reads later, and those of a folder that is renamed as a whole.
WRITTEN_IN_PLACE = {"benchmark/memory.py", "quickstart/wheels.py", "conversion/writing.py"}


def test_text_is_written_to_temporary_files_only() -> None:
    in_place = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_write = isinstance(node, ast.Attribute) and node.attr in WRITES
            if is_write and ast.unparse(node.value) != "temporary":
                in_place.add(path.relative_to(PACKAGE).as_posix())
    assert in_place == WRITTEN_IN_PLACE
