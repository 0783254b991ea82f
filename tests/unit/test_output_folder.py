import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from deformable_detr.files import WriteError, partial_path
from deformable_detr.files.output_folder import (
    MANIFEST,
    OutputFile,
    OutputFolder,
    require_file_place,
    require_folder_place,
)


def put(folder: Path, name: str, text: str, *, overwrite: bool = False) -> Path:
    outputs = OutputFolder(folder, "out", overwrite=overwrite)
    outputs.check([name])
    return outputs.write(name, lambda temporary: temporary.write_text(text))


def test_places_that_exist_or_can_be_created_are_accepted_and_left_as_they_are(
    tmp_path: Path,
) -> None:
    (tmp_path / "old.json").write_text("[]")
    for folder in (tmp_path, tmp_path / "a" / "b", Path(), Path("x/y")):
        require_folder_place("out", folder)
    for file in (tmp_path / "old.json", tmp_path / "a" / "new.json"):
        require_file_place("out", file)
    assert [path.name for path in tmp_path.iterdir()] == ["old.json"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("file", "where .*file is a file"),
        ("file/a/b", "where .*file is a file"),
        ("nowhere", "where .*nowhere is a file"),
        ("x" * 300, "File name too long"),
        ("a/" + "x" * 300 + "/b", "File name too long"),
        ("a\0b", "embedded null"),
    ],
)
def test_folders_that_cannot_be_are_refused_in_one_line(
    tmp_path: Path, name: str, reason: str
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").symlink_to("missing/folder")
    with pytest.raises(ValueError, match=rf"^out must be a folder, .*{reason}") as caught:
        OutputFolder(tmp_path / name, "out")
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("choose another path")


def test_a_read_only_file_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    with pytest.raises(ValueError, match=r"^pictures must be .*Read-only file system\); choose"):
        require_folder_place("pictures", tmp_path)


def test_a_file_whose_killed_writer_had_announced_a_new_one_is_still_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:  # after the line of the manifest, before the rename
        raise KeyboardInterrupt

    put(tmp_path, "a.txt", "first")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            put(tmp_path, "a.txt", "second")
    assert (tmp_path / "a.txt").read_text() == "first"
    assert len((tmp_path / MANIFEST).read_text().splitlines()) == 2
    assert put(tmp_path, "a.txt", "third").read_text() == "third"


def test_a_damaged_manifest_makes_its_files_foreign(tmp_path: Path) -> None:
    put(tmp_path, "a.txt", "first")
    for line in (b"", b'{"name": 1}\n[]\nnull\n\xff\n', b"[" * 100_000, b'{"name": "a.txt"'):
        (tmp_path / MANIFEST).write_bytes(line)
        with pytest.raises(
            ValueError, match=r"a\.txt \(not of deformable-detr\); give --overwrite"
        ):
            put(tmp_path, "a.txt", "second")
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "input").write_text("mine")
    (tmp_path / MANIFEST).symlink_to("input")  # a line must not be written through it
    with pytest.raises(ValueError, match=rf"{MANIFEST} must be a regular file, got a link"):
        put(tmp_path, "b.txt", "second", overwrite=True)
    assert (tmp_path / "input").read_text() == "mine"


def test_what_appears_during_the_work_is_kept_and_the_result_written_beside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = OutputFolder(tmp_path, "out")
    outputs.check(["a.b.txt", "c.txt"])
    (tmp_path / "a.b.txt").write_text("foreign")
    (tmp_path / "c.txt").mkdir()
    with caplog.at_level(logging.WARNING):
        path = outputs.write("a.b.txt", lambda temporary: temporary.write_text("ours"))
        other = outputs.write("c.txt", lambda temporary: temporary.write_text("ours"))
    assert (path.name, path.read_text()) == ("a.b_2.txt", "ours")
    assert (other.name, other.read_text()) == ("c_2.txt", "ours")
    assert (tmp_path / "a.b.txt").read_text() == "foreign"
    assert "a.b.txt has appeared or changed since the start, and is kept; the new" in caplog.text
    again = outputs.write("a.b_2.txt", lambda temporary: temporary.write_text("ours, again"))
    assert again.name == "a.b_2.txt"


def test_the_manifest_does_not_grow_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deformable_detr.files.output_folder._FEW_LINES", 10)
    for number in range(40):
        put(tmp_path, "a.txt", str(number))
    lines = (tmp_path / MANIFEST).read_text().splitlines()
    assert len(lines) <= 11
    assert json.loads(lines[-1])["size"] == 2


def test_a_torn_line_is_removed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.txt", "1")
    before = (tmp_path / MANIFEST).read_bytes()
    real = os.fdopen

    class Short:
        def __init__(self, *arguments: object, **options: object) -> None:
            self._file = real(*arguments, **options)  # type: ignore[call-overload]

        def __enter__(self) -> "Short":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> object:
            return getattr(self._file, name)

        def write(self, line: bytes) -> int:
            return self._file.write(line[:5])

    monkeypatch.setattr(os, "fdopen", Short)
    with pytest.raises(WriteError, match=r"b\.txt could not be written \(No space left on device"):
        put(tmp_path, "b.txt", "2")
    assert (tmp_path / MANIFEST).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, "a.txt"]


def test_names_of_any_bytes_and_of_the_longest_length_are_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "\udc80.png", "..png", "a\nb"):
        for text in ("1", "2"):
            assert put(tmp_path, name, text).read_text() == text
        assert not partial_path(tmp_path / name).exists()
    file = OutputFile(tmp_path / ("x" * 256), "out")
    with pytest.raises(ValueError, match="got: File name too long"):
        file.check()


def test_created_folders_are_removed_if_nothing_could_be_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    outputs = OutputFolder(tmp_path / "a" / "b" / "c", "out")
    outputs.check(["x"])

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(WriteError, match=r"c/x could not be written \(No space left on device\)"):
        outputs.write("x", full)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_an_edit_that_keeps_the_size_is_noticed(tmp_path: Path) -> None:
    path = put(tmp_path, "a.txt", "abc")
    assert OutputFolder(tmp_path, "out").holds("a.txt")
    path.write_text("abd")
    assert not OutputFolder(tmp_path, "out").holds("a.txt")
    with pytest.raises(ValueError, match=r"a\.txt \(changed since"):
        put(tmp_path, "a.txt", "new")
    assert path.read_text() == "abd"


@pytest.mark.parametrize("kind", ["folder", "named pipe"])
def test_a_manifest_that_is_no_file_is_refused_and_not_opened(tmp_path: Path, kind: str) -> None:
    if kind == "folder":
        (tmp_path / MANIFEST).mkdir()
    else:
        os.mkfifo(tmp_path / MANIFEST)  # opening it would never return
    with pytest.raises(ValueError, match=rf"^out must not replace .*{MANIFEST}, which is "):
        put(tmp_path, "a.txt", "1", overwrite=True)


def test_nothing_is_written_through_a_link_that_appears_as_the_manifest(tmp_path: Path) -> None:
    outputs = OutputFolder(tmp_path, "out")
    outputs.check(["a.txt"])
    (tmp_path / "input").write_text("mine")
    (tmp_path / MANIFEST).symlink_to("input")
    with pytest.raises(WriteError, match=r"a\.txt could not be written"):
        outputs.write("a.txt", lambda temporary: temporary.write_text("1"))
    assert (tmp_path / "input").read_text() == "mine"
    assert not (tmp_path / "a.txt").exists()


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_an_input_that_is_named_through_a_link_is_kept(tmp_path: Path, link: Any) -> None:
    put(tmp_path / "out", "a.txt", "mine")
    link(tmp_path / "input", tmp_path / "out" / "a.txt")
    outputs = OutputFolder(tmp_path / "out", "out", overwrite=True)
    with pytest.raises(ValueError, match=r"^out must not replace an input, got .*a\.txt"):
        outputs.check(["a.txt"], inputs=[tmp_path / "input"])
