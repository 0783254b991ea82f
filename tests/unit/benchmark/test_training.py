"""The two measurements of training, on a detector that is small except for its encoder."""

import re
from collections.abc import Iterator

import pytest

from deformable_detr.benchmark.training import measure_processes, measure_settings

pytestmark = pytest.mark.slow
SMALL = (
    "model.backbone.depth=18",
    "model.embed_dim=64",
    "model.attention.num_heads=2",
    "model.decoder.num_layers=1",
    "model.queries.num_queries=5",
)
NUMBER = r"([\d.]+)"
SPREAD = rf"{NUMBER} \({NUMBER} to {NUMBER}\)"


def numbers(lines: Iterator[str], pattern: str) -> dict[str, list[float]]:
    """Return the numbers of each line, by its first words."""
    found = {}
    for line in lines:
        match = re.fullmatch(rf"(\w+(?: \w+)*) +{pattern}", line)
        assert match is not None, line
        found[match[1]] = [float(number) for number in match.groups()[1:]]
    return found


def test_settings_are_compared_with_plain_and_checkpointing_takes_less_memory() -> None:
    lines = measure_settings(size=192, images=1, rounds=2, overrides=SMALL)
    memory = rf"; {NUMBER} MB, {NUMBER} of plain"
    found = numbers(lines, rf"{SPREAD} s, {SPREAD} of plain{memory}")
    assert list(found) == ["plain", "gradient checkpointing", "channels last", "bfloat16"]
    plain, checkpointing = found["plain"], found["gradient checkpointing"]
    assert plain[3:6] == [1, 1, 1]
    assert checkpointing[6] < plain[6]  # of the whole process; other tests count tensors
    assert checkpointing[7] == pytest.approx(checkpointing[6] / plain[6], abs=0.01)


def test_two_processes_are_compared_with_one() -> None:
    found = numbers(measure_processes(size=64, images=1, rounds=2, overrides=SMALL), f"{SPREAD}.*")
    assert list(found) == ["one process", "two processes", "ratio"]
    one, two, ratio = (found[name] for name in found)
    # Medians of ratios and ratios of medians differ, within limits.
    assert two[1] / one[2] <= ratio[0] + 0.01
    assert ratio[0] <= two[2] / one[1] + 0.01
