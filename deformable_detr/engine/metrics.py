"""What a run measures: metrics of a batch, their averages, and the file that they go to."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deformable_detr import distributed
from deformable_detr.losses.matcher import Match
from deformable_detr.structures import Predictions, Target


@torch.no_grad()
def detection_metrics(
    predictions: Predictions, targets: Sequence[Target], matches: Sequence[Match]
) -> dict[str, Tensor]:
    """Two numbers for people, as the official code logs them; no loss depends on them.

    Args:
        predictions: of the last decoder layer, for N images.
        targets: N of them.
        matches: N of them, between the two.

    Returns:
        `class_error`: percentage of the matched queries whose best class is not the target's,
        100 where nothing is matched. `cardinality_error`: mean over the images of the
        difference between the number of targets and that of queries whose best class is not
        the last one, which says little as there is no "no object" class.
    """
    best = predictions.logits.argmax(-1)  # (N, Q)
    predicted = torch.cat([best[n, match.query_index] for n, match in enumerate(matches)])
    wanted = torch.cat(
        [target.labels[match.target_index] for target, match in zip(targets, matches, strict=True)]
    )
    correct = (predicted == wanted).sum() / max(1, len(wanted))
    counts = torch.tensor([len(target) for target in targets]).to(best.device, non_blocking=True)
    found = (best != predictions.logits.shape[-1] - 1).sum(1)
    return {
        "class_error": 100 * (1 - correct),
        "cardinality_error": (found - counts).abs().float().mean(),
    }


class RunningMean:
    """Means of named values since the last reading, kept on the device until then."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add one value of each name; the names must be the same every time."""
        for name, value in values.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if self._count else value
        self._count += 1

    def read(self) -> dict[str, float]:
        """The means over all updates and processes, and start again; {} after no update.

        Every process must read at the same time. This waits for the device.
        """
        if not self._sums:
            return {}
        total = distributed.all_reduce_sum(torch.stack(list(self._sums.values())))
        means = (total / (self._count * distributed.world_size())).tolist()
        result = dict(zip(self._sums, means, strict=True))
        self._sums, self._count = {}, 0
        return result


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Add one line of JSON to a metrics file, which holds one record a line."""
    with path.open("a", encoding="ascii") as file:
        file.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file, oldest first."""
    lines = path.read_text(encoding="ascii").splitlines()
    return [_read_record(path, number, line) for number, line in enumerate(lines, start=1)]


def _read_record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {number} of {path} must be a JSON object, got {line!r}; delete the line"
        ) from error
    return record


def forget_records_after(path: Path, step: int) -> None:
    """Drop the records of later steps, which a resumed run takes again."""
    kept = [record for record in read_records(path) if record["step"] <= step]
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="ascii")
    temporary.replace(path)
