import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deformable_detr.files import (
    WriteError,
    as_path,
    partial_path,
    require_regular_file,
    write_whole,
)


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


def test_the_content_is_on_the_disk_before_the_file_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced = tmp_path / "a", []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.exists()))
    write(path, "new")
    assert synced == [False]


PACKAGE = Path(__file__).parents[2] / "deformable_detr"
WRITES = {
    *("write_text", "write_bytes", "save", "savefig", "save_file"),
    *("savez", "savez_compressed", "tofile", "to_csv"),
}
# What `write_whole` yields, a file that was opened there, and buffers in memory.
WHOLE = {"temporary", "file", "data", "formatter"}
# Files that nobody reads later, those of a folder that is renamed as a whole, the lines of metrics
# and of a lock, and functions that write whole themselves.
WRITTEN_IN_PLACE = {
    "benchmark/memory.py: _CLEAR_REFS.write_text",
    "engine/micro_batch.py: _CLEAR_REFS.write_text",
    "quickstart/wheels.py: requirements.write_text",
    "conversion/stored.py: save_file",
    "conversion/writing.py: (folder / name).write_text",
    "workflows/doctor/data_check.py: place.write_text",
    "engine/metrics.py: path.open",
    "evaluation/partial_results.py: self.path.open",
    "engine/run/session.py: files.lock.open",
    "engine/failures/recorder.py: bundle.save",
}


def writes(path: Path) -> Iterator[str]:
    """Yield the calls of a module that write to something else than a temporary file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        function = ast.unparse(node.func)
        name, arguments = function.rpartition(".")[2], [ast.unparse(one) for one in node.args]
        mode = next((one for one in arguments if re.fullmatch(r"'[rwxab+t]{1,3}'", one)), "'r'")
        is_opened = name == "open" and bool(set(mode) & set("wxa+"))
        receiver = function.rpartition(".")[0]
        if (is_opened or name in WRITES) and not {receiver, *arguments} & WHOLE:
            yield f"{path.relative_to(PACKAGE).as_posix()}: {function}"


def test_files_are_written_to_temporary_files_only() -> None:
    in_place = {call for path in PACKAGE.rglob("*.py") for call in writes(path)}
    assert in_place == WRITTEN_IN_PLACE


@pytest.mark.parametrize("error", [OSError(28, "full"), RuntimeError("torch"), ValueError("rust")])
def test_an_error_of_the_system_names_the_file(tmp_path: Path, error: Exception) -> None:
    if isinstance(error, RuntimeError):  # as torch.save raises it
        error.__context__ = OSError(28, "full")
    elif isinstance(error, ValueError):  # as safetensors does
        error = ValueError("I/O error: full (os error 28)")
    path = tmp_path / "a.json"
    write(path, "old")
    with pytest.raises(WriteError) as caught:
        write(path, "new", error)
    assert str(caught.value) in {
        f"{path} could not be written ({reason}); what was there before is untouched; free space "
        "or choose another place"
        for reason in ("full", "No space left on device")
    }
    assert path.read_text() == "old"
    for other in (ValueError("a number is NaN"), RuntimeError("shape")):  # no matter of the disk
        with pytest.raises(type(other), match=str(other)):
            write(path, "new", other)


def test_a_leftover_and_a_link_are_replaced_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "input").write_text("mine")
    path = tmp_path / "a.json"
    partial_path(path).symlink_to("input")
    path.symlink_to("input")
    write(path, "new")
    assert not path.is_symlink()
    assert (path.read_text(), (tmp_path / "input").read_text()) == ("new", "mine")
    folder = tmp_path / "folder"
    partial_path(folder).mkdir()
    (partial_path(folder) / "stale").touch()
    with write_whole(folder) as temporary:
        temporary.mkdir()
    assert list(folder.iterdir()) == []


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
