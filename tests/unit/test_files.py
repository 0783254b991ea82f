import ast
import os
from pathlib import Path

import pytest

from deformable_detr.files import as_path, require_regular_file, write_whole


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


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("nothing", FileNotFoundError, "must exist, found nothing there"),
        ("folder", ValueError, "found a folder"),
        ("pipe", ValueError, "found a named pipe"),
        ("link_to_pipe", ValueError, "found a named pipe"),
        ("loop", ValueError, "must be a path of a file, got: Too many levels of symbolic links"),
        ("file/below", ValueError, "must be a path of a file, got: Not a directory"),
        ("a\0b", ValueError, r"a\\x00b must be a path of a file, got: (stat: )?embedded null"),
        ("x" * 5000, ValueError, r"xxx must be a path of a file, got: File name too long"),
        ("\udc80\x1b", FileNotFoundError, r"\\udc80\\x1b must exist"),
    ],
)
def test_only_regular_files_pass(tmp_path: Path, name: str, error: type, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link_to_pipe").symlink_to("pipe")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(error, match=words) as caught:
        require_regular_file(tmp_path / name, "annotation file")
    assert str(caught.value).startswith("annotation file ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("url", ["https://example.org/a.jpg", "file:///a.jpg", "s3://bucket/a"])
def test_a_url_is_not_taken_for_a_path(url: str) -> None:
    with pytest.raises(ValueError, match="got a URL; download the file first"):
        require_regular_file(Path(url), "image")


def test_a_link_to_a_file_passes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    require_regular_file(tmp_path / "link", "image")
    with pytest.raises(ValueError, match="found a device"):
        require_regular_file(Path(os.devnull), "image")


def test_an_empty_path_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^out must be a path, got an empty text$"):
        as_path("out", "")
    assert as_path("out", ".") == Path()


def test_a_folder_of_another_format_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "1.xml").touch()
    with pytest.raises(ValueError, match=r"found a folder of XML files, as Pascal VOC has; conv"):
        require_regular_file(tmp_path, "annotation file")
