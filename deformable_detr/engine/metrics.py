"""What a run measures: metrics of a batch, their averages, and the file that they go to."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deformable_detr import distributed
from deformable_detr.files import write_whole
from deformable_detr.losses.criterion import CriterionResult
from deformable_detr.losses.matcher import Match
from deformable_detr.structures import ModelOutput, Predictions, Target

# Names of the official code's log and weights, by ours.
OFFICIAL_NAMES = {"loss_class": "loss_ce", "loss_l1": "loss_bbox", "loss_giou": "loss_giou"}


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
    return {
        "class_error": 100 * (1 - correct),
        "cardinality_error": _cardinality_error(predictions, targets),
    }


def _cardinality_error(predictions: Predictions, targets: Sequence[Target]) -> Tensor:
    best = predictions.logits.argmax(-1)  # (N, Q)
    counts = torch.tensor([len(target) for target in targets]).to(best.device, non_blocking=True)
    found = (best != predictions.logits.shape[-1] - 1).sum(1)
    return (found - counts).abs().float().mean()


@torch.no_grad()
def official_losses(
    output: ModelOutput, targets: Sequence[Target], result: CriterionResult
) -> dict[str, Tensor]:
    """Every loss and metric under the official code's name, as its criterion returns them.

    Args:
        output: of the model, for N images.
        targets: N of them.
        result: what the criterion made of the two.

    Returns:
        The unweighted `loss_ce`, `loss_bbox`, `loss_giou` and the metric `cardinality_error` of
        the last layer, with a suffix `_0`, `_1`, ... of earlier layers, with `_enc` of proposals;
        and `class_error` of the last layer: 25 values with six decoder layers, 29 two-stage. They
        are detached; `result.losses` has what to differentiate.
    """
    layers = {"": output.last, "encoder/": output.encoder}
    layers |= {f"decoder_{index}/": layer for index, layer in enumerate(output.auxiliary)}
    values = detection_metrics(output.last, targets, result.last_match)
    for prefix in result.matches:
        predictions = layers[prefix]
        assert predictions is not None  # else it could not have been matched
        suffix = _official_suffix(prefix)
        for ours, theirs in OFFICIAL_NAMES.items():
            values[theirs + suffix] = result.losses[prefix + ours].detach()
        values[f"cardinality_error{suffix}"] = _cardinality_error(predictions, targets)
    return values


def _official_suffix(prefix: str) -> str:
    """Of a layer's losses: "" -> "", "decoder_3/" -> "_3", "encoder/" -> "_enc"."""
    part = prefix.rstrip("/")
    return "_enc" if part == "encoder" else part.removeprefix("decoder")


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
    """Add one line of JSON to a metrics file, which holds one record a line.

    Raises:
        OSError: the file could not be written, as on a full disk; no part of the line is in it.
    """
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="ascii") as file:
            file.write(json.dumps(record) + "\n")
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


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


def forget_records_after(path: Path, step: int, *, is_evaluated: bool = True) -> None:
    """Drop the records of what a resumed run does again, and a last line that was cut off.

    Args:
        path: the metrics file.
        step: the run goes on after it.
        is_evaluated: whether it was evaluated at that step before it was saved.
    """
    text = path.read_text(encoding="ascii")
    whole = text[: text.rfind("\n") + 1].splitlines()
    records = [_read_record(path, number, line) for number, line in enumerate(whole, start=1)]
    kept = [
        record
        for record in records
        if record["step"] < step
        or (record["step"] == step and (is_evaluated or record["kind"] != "evaluation"))
    ]
    lines = "".join(json.dumps(record) + "\n" for record in kept)
    with write_whole(path) as temporary:
        temporary.write_text(lines, encoding="ascii")
