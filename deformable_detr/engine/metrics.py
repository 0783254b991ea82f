"""Training metrics: metrics of a batch, their running means, and the metrics file."""

import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from deformable_detr import distributed
from deformable_detr.arguments import LARGEST_COUNT, checked
from deformable_detr.files import require_regular_file, write_whole
from deformable_detr.finite import to_json
from deformable_detr.losses.criterion import CriterionResult
from deformable_detr.losses.matcher import Match
from deformable_detr.messages import in_brief, shown
from deformable_detr.structures import ModelOutput, Predictions, Target

# Names of the official code's log and weights, by ours.
OFFICIAL_NAMES = {"loss_class": "loss_ce", "loss_l1": "loss_bbox", "loss_giou": "loss_giou"}
# Kinds of records that hold numbers only, and numbers that each of the kind has.
_NUMBERS = {"train": ("total",), "evaluation": ("AP", "AP50")}


@torch.no_grad()
def detection_metrics(
    predictions: Predictions,
    targets: Sequence[Target],
    matches: Sequence[Match],
    *,
    num_images: float,
    num_objects: float,
) -> dict[str, Tensor]:
    """Compute class and cardinality error, as the official code logs them; no loss uses them.

    Args:
        predictions: predictions of the last decoder layer, for N images.
        targets: targets of the N images.
        matches: matches between predictions and targets of the N images.
        num_images: divisor: N, or for a share of a step its number of images per process.
        num_objects: divisor: the number of objects, at least 1, or as above.

    Returns:
        `class_error`: percentage of the objects for whose query another class is the best one, or
        that have no query; 100 if there are none. `cardinality_error`: mean over the images of the
        absolute difference between the number of targets and the number of queries whose best
        class is not the last one. It has little meaning here, as there is no "no object" class.
    """
    best = predictions.logits.argmax(-1)  # (N, Q)
    predicted = torch.cat([best[n, match.query_index] for n, match in enumerate(matches)])
    expected = torch.cat(
        [target.labels[match.target_index] for target, match in zip(targets, matches, strict=True)]
    )
    correct = (predicted == expected).sum() / num_objects
    share = len(targets) / num_images
    return {
        "class_error": 100 * (share - correct),
        "cardinality_error": share * _cardinality_error(predictions, targets),
    }


def _cardinality_error(predictions: Predictions, targets: Sequence[Target]) -> Tensor:
    best = predictions.logits.argmax(-1)  # (N, Q)
    counts = torch.tensor([len(target) for target in targets]).to(best.device, non_blocking=True)
    found = (best != predictions.logits.shape[-1] - 1).sum(1)
    return (found - counts).abs().float().mean()


@torch.no_grad()
@checked
def official_losses(
    output: ModelOutput, targets: Sequence[Target], result: CriterionResult
) -> dict[str, Tensor]:
    """Return all losses and metrics under the official code's names, as its criterion does.

    Args:
        output: output of the model, for N images.
        targets: targets of the N images.
        result: losses and matches of the criterion, for output and targets.

    Returns:
        The unweighted `loss_ce`, `loss_bbox`, `loss_giou` and the metric `cardinality_error` of
        the last layer; the same of earlier layers with a suffix `_0`, `_1`, ... and of proposals
        with `_enc`; and `class_error` of the last layer: 25 values with six decoder layers, 29
        two-stage. Proposals that are ranked by class have the suffix `_interm`, and denoising has
        `_dn`, `_dn_0`, ..., as in the official DINO: 53 values. They are detached; the terms to
        differentiate are in `result.losses`.
    """
    layers = {"": output.last, "encoder/": output.encoder}
    layers |= {f"decoder_{index}/": layer for index, layer in enumerate(output.auxiliary)}
    if output.denoised is not None:
        *earlier, layers["denoising/"] = output.denoised.layers
        layers |= {f"denoising/decoder_{index}/": layer for index, layer in enumerate(earlier)}
    values = detection_metrics(
        output.last,
        targets,
        result.last_match,
        num_images=len(targets),
        num_objects=max(1, sum(len(match.query_index) for match in result.last_match)),
    )
    proposals = "_enc" if result.one_class_proposals else "_interm"
    for prefix in result.matches:
        predictions = layers[prefix]
        assert predictions is not None  # it has matches
        suffix = _official_suffix(prefix, proposals=proposals)
        for ours, theirs in OFFICIAL_NAMES.items():
            values[theirs + suffix] = result.losses[prefix + ours].detach()
        values[f"cardinality_error{suffix}"] = _cardinality_error(predictions, targets)
    return values


def _official_suffix(prefix: str, *, proposals: str) -> str:
    """Return the official suffix: "decoder_3/" -> "_3", "denoising/decoder_3/" -> "_dn_3"."""
    part = prefix.removeprefix("denoising/").rstrip("/")
    suffix = proposals if part == "encoder" else part.removeprefix("decoder")
    return f"_dn{suffix}" if prefix.startswith("denoising/") else suffix


class RunningMean:
    """Means of named values since the last `read`; sums stay on the device until then."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add one value per name; the names must be the same in every call."""
        for name, value in values.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if self._count else value
        self._count += 1

    def read(self) -> dict[str, float]:
        """Return the means over all updates and processes, and reset; {} after no update.

        Every process must call at the same time. This waits for the device.
        """
        if not self._sums:
            return {}
        total = distributed.all_reduce_sum(torch.stack(list(self._sums.values())))
        means = (total / (self._count * distributed.world_size())).tolist()
        result = dict(zip(self._sums, means, strict=True))
        self._sums, self._count = {}, 0
        return result


def append_record(path: Path, record: Mapping[str, Any]) -> None:
    """Append one line of JSON to a metrics file, which holds one record per line.

    Raises:
        OSError: the file could not be written, as on a full disk; no part of the line remains.
        ValueError: a number is infinite or NaN.
    """
    line = to_json(record, f"a record of {path}") + "\n"
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a", encoding="ascii") as file:
            file.write(line)
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics file, oldest first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file, or a line is no record; the message names the line.
    """
    lines = _read_text(path).splitlines()
    return [_read_record(path, number, line) for number, line in enumerate(lines, start=1)]


def _read_text(path: Path) -> str:
    require_regular_file(path, "metrics file")
    try:
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"metrics file {shown(path)} must be ASCII, got another byte at {error.start}; "
            "delete its line"
        ) from error


def _read_record(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        problem = f"must be a JSON object, got {in_brief(line)}"
    else:
        problem = _problem_of(record)
    if problem:
        raise ValueError(f"line {number} of {shown(path)} {problem}; delete the line")
    return cast("dict[str, Any]", record)


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _problem_of(record: Mapping[str, Any]) -> str:
    """Describe what a record must have and has not; "" if it is as a run writes it."""
    if not isinstance(record.get("kind"), str):
        return f"must have a kind, got {in_brief(record.get('kind'))}"
    step = record.get("step")
    if type(step) is not int or not 0 <= step <= LARGEST_COUNT:
        return f"must have a step of 0..{LARGEST_COUNT}, got {in_brief(step)}"
    if record["kind"] == "start" and not _are_texts(record.get("environment")):
        return f"must have texts in environment, got {in_brief(record.get('environment'))}"
    if record["kind"] in _NUMBERS:
        for name in _NUMBERS[record["kind"]]:
            if name not in record:
                return f"must have {name}, got {in_brief(record)}"
        for name, value in record.items():
            if name != "kind" and not _is_finite(value):
                return f"must have a finite number for {in_brief(name)}, got {in_brief(value)}"
    return ""


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(one, str) for one in value.values())


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def forget_records_after(path: Path, step: int, *, is_evaluated: bool = True) -> None:
    """Drop the records of steps that a resumed run repeats, and a truncated last line.

    Args:
        path: the metrics file.
        step: the run continues after this step.
        is_evaluated: whether the run was evaluated at that step before it was saved.
    """
    text = _read_text(path)
    lines = text[: text.rfind("\n") + 1].splitlines()
    records = [_read_record(path, number, line) for number, line in enumerate(lines, start=1)]
    kept = [
        f"{line}\n"
        for line, record in zip(lines, records, strict=True)
        if record["step"] < step
        or (record["step"] == step and (is_evaluated or record["kind"] != "evaluation"))
    ]
    with write_whole(path) as temporary:
        temporary.write_text("".join(kept), encoding="ascii")
