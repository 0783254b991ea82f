"""Partial results: what was written is read back exactly, whatever ended the writing."""

import errno
import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from deformable_detr.evaluation import partial_results
from deformable_detr.evaluation.partial_results import (
    PartialResults,
    identity_of,
    partial_results_files,
    partial_results_path,
)
from deformable_detr.structures import Detections

IDENTITY = {"checkpoint": "a", "threshold": 0.1}
BATCHES = ([1, 2], [3], [4, 5, 6])


def detections(seed: int) -> Detections:
    random = torch.Generator().manual_seed(seed)
    count = seed % 4
    return Detections(
        torch.rand(count, generator=random),
        torch.randint(9, (count,), generator=random),
        torch.rand(count, 4, generator=random) * 1000,
    )


def opened(result: Path, identity: dict[str, Any] = IDENTITY, **options: Any) -> PartialResults:
    return PartialResults(result, identity, num_images=6, **options)


def write(result: Path, batches: tuple[list[int], ...] = BATCHES) -> Path:
    """Write batches and fail."""
    partial = opened(result)
    with suppress(KeyboardInterrupt), partial:
        for batch in batches:
            partial.add({key: detections(key) for key in batch})
        raise KeyboardInterrupt
    return partial.path


@pytest.fixture
def result(tmp_path: Path) -> Path:
    return tmp_path / "new" / "r.json"


def test_what_was_found_is_read_back_to_the_last_bit(
    result: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(result)
    assert caplog.messages == [
        f"6 of 6 images are kept in {path}; the same command continues after them"
    ]
    assert all(isinstance(json.loads(line), dict) for line in path.read_text().splitlines())
    with opened(result) as partial:
        assert partial.done == {1, 2, 3, 4, 5, 6}
        for key, one in partial.found.items():
            for name in ("scores", "labels", "boxes_xyxy"):
                expected = getattr(detections(int(key)), name)
                assert getattr(one, name).equal(expected)
                assert getattr(one, name).dtype == expected.dtype
    assert list(result.parent.iterdir()) == []


def test_a_file_cut_off_at_any_byte_has_the_batches_before_it_and_is_continued(
    result: Path,
) -> None:
    content = write(result).read_bytes()
    path = partial_results_path(result)
    ends = [0]
    for batch in BATCHES:
        ends.append(ends[-1] + len(batch))
    lines = content.splitlines(keepends=True)
    offsets = [len(b"".join(lines[: 1 + end])) for end in ends]
    for length in range(0, len(content) + 1, 7):
        path.write_bytes(content[:length])
        whole = max((end for end, at in zip(ends, offsets, strict=True) if at <= length), default=0)
        partial = opened(result)
        assert partial.done == set(range(1, whole + 1)), length
        for batch in BATCHES:
            if batch[0] > whole:
                partial.add({key: detections(key) for key in batch})
        assert path.read_bytes() == content, length
        assert partial._file is None or partial._file.close() is None


def test_a_damaged_line_ends_what_is_read(result: Path) -> None:
    path = write(result)
    lines = path.read_text().splitlines()
    damages = ["", "[]", "{}", lines[3].replace("scores", "score"), "\0" * 40, "[" * 10**5]
    found = {"scores": [0.5], "labels": [0], "boxes_xyxy": [[0.0, 0.0, 1.0, 1.0]]}
    wrong = (
        {"image": [3]},
        {"image": None},
        {"left_in_batch": "0"},
        {**found, "scores": [float("nan")]},
        {**found, "boxes_xyxy": [[0.0, 0.0, float("inf"), 1.0]]},
    )
    damages += [json.dumps({**json.loads(lines[3]), **one}) for one in wrong]
    for damage in damages:
        path.write_text("\n".join([*lines[:3], damage, *lines[4:]]) + "\n")
        assert opened(result).done == {1, 2}, damage[:20]


def test_images_that_are_not_usable_are_computed_again_with_their_batch(result: Path) -> None:
    write(result)
    assert opened(result, usable=lambda key: key != 5).done == {1, 2, 3}


def test_results_of_other_work_are_kept(result: Path) -> None:
    path = write(result)
    content = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"partial\.jsonl holds 6 images of other work, which "
    ) as e:
        opened(result, {"checkpoint": "b", "threshold": 0.1, "classes": ["cat"]})
    assert "differs in checkpoint, classes; repeat that command to finish it, delete" in str(
        e.value
    )
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b"\n", b"[1]\n", b"notes", b'{"partial_results": 3}\n'])
def test_a_file_of_another_kind_is_kept(result: Path, content: bytes) -> None:
    path = partial_results_path(result)
    path.parent.mkdir()
    path.write_bytes(content)
    if not content:  # a disk that was full before the first byte
        assert opened(result).done == set()
        return
    with pytest.raises(ValueError, match="must be partial results of this package, found another"):
        opened(result)
    assert path.read_bytes() == content


class _FullDisk:
    """File on a disk with room for some bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room
        self.close, self.truncate = file.close, file.truncate

    def write(self, data: memoryview) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self._file.write(data[: self._room])
        self._room -= count
        return int(count)


def test_a_full_disk_is_named_and_what_fitted_can_be_read(
    result: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = len(write(result).read_bytes())
    partial_results_path(result).unlink()
    caplog.clear()
    partial = opened(result)
    with pytest.raises(OSError, match=r"partial\.jsonl could not be written \(No space left on"):
        fill(partial, room=size - 20)
    assert caplog.messages == [
        f"3 of 6 images are kept in {partial.path}; the same command continues after them"
    ]
    assert opened(result).done == {1, 2, 3}


def fill(partial: PartialResults, *, room: int) -> None:
    with partial:
        partial._append("")
        assert partial._file is not None
        taken = partial.path.stat().st_size
        partial._file = _FullDisk(partial._file, room - taken)  # type: ignore[assignment]
        for batch in BATCHES:
            partial.add({key: detections(key) for key in batch})


@pytest.fixture
def as_rank(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that lets this process be one rank of two, given the other's images."""

    def become(rank: int, other: list[int]) -> None:
        fake = SimpleNamespace(
            rank=lambda: rank,
            is_main=lambda: rank == 0,
            all_gather_objects=lambda own: [own, other] if rank == 0 else [other, own],
        )
        monkeypatch.setattr(partial_results, "distributed", fake)

    return become


def test_each_process_has_a_file_and_any_number_of_processes_continues(
    result: Path, as_rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_rank(0, [])
    write(result, ([1, 2],))
    as_rank(1, [1, 2])
    write(result, ([3],))
    names = ["r.json.partial.1.jsonl", "r.json.partial.jsonl"]
    assert [file.name for file in partial_results_files(result)] == names
    as_rank(0, [1, 2, 3])  # both files are seen by both
    assert opened(result).found.keys() == {1, 2, 3}
    as_rank(1, [1, 2, 3])
    second = opened(result)
    assert (second.done, second.found) == ({1, 2, 3}, {})
    monkeypatch.undo()
    with opened(result) as alone:
        assert alone.found.keys() == {1, 2, 3}
    assert list(result.parent.iterdir()) == []


def test_the_identity_depends_on_weights_settings_images_and_annotations(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.jpg", "b.jpg", "all.json")]
    for file in files:
        file.write_bytes(b"1")
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def now(**settings: Any) -> dict[str, Any]:
        return identity_of(model, files[:2], files[2], **settings)

    def changed(before: dict[str, Any]) -> list[str]:
        return [name for name, value in now().items() if before[name] != value]

    first = now()
    model.train()
    model.eval()
    assert now() == first == json.loads(json.dumps(first))
    with torch.no_grad():
        model[0].bias[0] += 1e-6
    assert changed(first) == ["checkpoint"]
    first = now()
    model[1].eps = 0.1
    assert changed(first) == ["checkpoint"]
    first = now()
    files[1].write_bytes(b"12")
    assert changed(first) == ["images"]
    first = now()
    files[2].write_bytes(b"2")
    assert changed(first) == ["annotations"]
    assert now(threshold=0.1) != now(threshold=0.2)


@pytest.mark.parametrize("content", [None, b"notes"])
def test_what_is_in_the_way_is_deleted_with_overwrite(
    result: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(result)
    if content is not None:
        path.write_bytes(content)
    other = partial_results_path(result, 1)  # of a process that there is no longer
    other.write_bytes(path.read_bytes())
    identity = {"checkpoint": "b"}
    with pytest.raises(ValueError, match="give --overwrite to delete the file, or choose"):
        opened(result, identity, overwrite=False)
    assert opened(result, identity, overwrite=True).done == set()
    assert partial_results_files(result) == []
    assert sum("is deleted, as --overwrite says" in one for one in caplog.messages) == 2


def test_own_results_are_continued_with_overwrite(result: Path) -> None:
    write(result)
    assert len(opened(result, overwrite=True).done) == 6


@pytest.mark.parametrize("overwrite", [None, True])
def test_an_input_is_not_deleted(result: Path, tmp_path: Path, overwrite: bool | None) -> None:
    path = write(result)
    given = tmp_path / "checkpoint.pth"
    given.symlink_to(path)
    with pytest.raises(ValueError, match="must not be an input"):
        opened(result, {"checkpoint": "b"}, overwrite=overwrite, inputs=[given, tmp_path / "no"])
    assert path.exists()
