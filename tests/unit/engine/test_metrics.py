import os
from pathlib import Path

import pytest
import torch

from deformable_detr.engine.metrics import (
    RunningMean,
    append_record,
    detection_metrics,
    forget_records_after,
    read_records,
)
from deformable_detr.losses.matcher import Match
from deformable_detr.structures import Predictions, Target

# Example of the official code's matcher and criterion, with its published values.
LOGITS = [[0.0, 1.0, -2.0], [2.0, -1.0, 0.5], [-1.0, -1.0, 3.0]]
BOXES = [[0.5, 0.5, 0.4, 0.4], [0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.5, 0.3]]
TARGET_BOXES = [[0.5, 0.5, 0.5, 0.5], [0.7, 0.6, 0.4, 0.4]]


def example(labels: list[int], matched: list[int]) -> dict[str, float]:
    predictions = Predictions(torch.tensor([LOGITS]), torch.tensor([BOXES]))
    boxes = torch.tensor(TARGET_BOXES)[: len(labels)].view(-1, 4)
    target = Target(boxes, torch.tensor(labels, dtype=torch.int64), 1, (10, 10))
    match = Match(torch.tensor(matched, dtype=torch.int64), torch.arange(len(labels)))
    counts = {"num_images": 1, "num_objects": max(1, len(labels))}
    metrics = detection_metrics(predictions, [target], [match], **counts)
    return {name: value.item() for name, value in metrics.items()}


def test_the_official_example_has_no_errors() -> None:
    assert example([1, 2], [0, 2]) == {"class_error": 0, "cardinality_error": 0}


def test_the_official_example_without_targets() -> None:
    assert example([], []) == {"class_error": 100, "cardinality_error": 2}


def test_class_error_is_the_percentage_of_wrong_matches() -> None:
    assert example([1, 2], [0, 1])["class_error"] == 50


def test_means_are_over_the_values_since_the_last_read() -> None:
    means = RunningMean()
    assert means.read() == {}
    for value in (1.0, 3.0):
        means.update({"a": torch.tensor(value), "b": torch.tensor(-value, requires_grad=True)})
    assert means.read() == {"a": 2.0, "b": -2.0}
    means.update({"a": torch.tensor(5.0), "b": torch.tensor(0.0)})
    assert means.read() == {"a": 5.0, "b": 0.0}


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    records = [
        {"kind": "train", "step": 1, "total": 0.1},
        {"kind": "evaluation", "step": 2, "AP": -1.0, "AP50": 0.5},
        {"kind": "start", "step": 2, "environment": {"CPU": "x"}, "exif": {"train": "upright"}},
    ]
    for record in records:
        append_record(path, record)
    assert read_records(path) == records
    assert path.read_text().count("\n") == 3


def test_records_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        append_record(path, {"kind": "memory", "step": step})
    forget_records_after(path, 2)
    assert [record["step"] for record in read_records(path)] == [1, 2]
    assert list(tmp_path.iterdir()) == [path]


def test_an_evaluation_that_a_resumed_run_repeats_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    numbers = {"train": {"total": 1.0}, "evaluation": {"AP": 0.1, "AP50": 0.2}}
    records = [{"kind": kind, "step": step, **numbers[kind]} for step in (1, 2) for kind in numbers]
    for record in records:
        append_record(path, record)
    forget_records_after(path, 2, is_evaluated=True)
    assert read_records(path) == records
    forget_records_after(path, 2, is_evaluated=False)
    assert read_records(path) == records[:3]


def test_a_truncated_last_line_is_dropped_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "memory", "step": 1}\n{"kind": "memory", "step": 2, "tot')
    forget_records_after(path, 2)
    assert path.read_text() == '{"kind": "memory", "step": 1}\n'


def test_a_truncated_line_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "memory", "step": 1}\n{"st')
    with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl must be a JSON object"):
        read_records(path)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "null",
        "[1]",
        "{",
        "[" * 100_000,
        "\u00e9\x1b[2J",
        '{"kind": "train"}',
        '{"step": 1, "total": 1}',
        '{"kind": ["train"], "step": 1}',
        '{"kind": "memory", "step": "1"}',
        '{"kind": "memory", "step": true}',
        '{"kind": "memory", "step": 1' + "0" * 5000 + "}",
        '{"kind": "train", "step": 1}',
        '{"kind": "train", "step": 1, "total": "1"}',
        '{"kind": "train", "step": 1, "total": NaN}',
        '{"kind": "train", "step": 1, "total": 1e999}',
        '{"kind": "train", "step": 1, "total": 1, "lr": [1]}',
        '{"kind": "evaluation", "step": 1, "AP": null, "AP50": 0.1}',
        '{"kind": "start", "step": 1, "environment": {"CPU": 1}}',
        '{"kind": "start", "step": 1, "environment": ["\\u001b[2J"]}',
    ],
)
def test_a_hostile_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"kind": "train", "step": 1, "total": 1.0}}\n{line}\n', encoding="utf-8")
    for read in (read_records, lambda path: forget_records_after(path, 1)):
        with pytest.raises(ValueError, match=r"line 2 of .*metrics\.jsonl|must be ASCII") as raised:
            read(path)
        assert str(raised.value).isprintable()
        assert str(raised.value).endswith(("delete the line", "delete its line"))


def test_a_metrics_file_that_never_ends_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=r"metrics file .* must be a regular file, found a named"):
        read_records(tmp_path / "metrics.jsonl")
