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
