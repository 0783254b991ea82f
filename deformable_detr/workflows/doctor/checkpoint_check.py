"""`doctor checkpoint`: what a file of weights holds, and whether it can be used."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deformable_detr.arguments import checked
from deformable_detr.builders import build_model
from deformable_detr.builders.weights import model_with_weights, numbered_classes
from deformable_detr.config import ModelConfig, RunConfig
from deformable_detr.config.loading import load_config, validate_config
from deformable_detr.conversion.files import read_weights
from deformable_detr.conversion.weights import Weights
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.engine.checkpoints.sealed_file import is_sealed
from deformable_detr.engine.checkpoints.transfer import TransferReport
from deformable_detr.files import as_path
from deformable_detr.finite import describe_non_finite
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import shown
from deformable_detr.workflows.finetuning import FinetuneSource
from deformable_detr.workflows.session import kept_torch_state


@dataclass(frozen=True)
class CheckpointReport:
    """Content of a file of weights, and what is wrong with it.

    Attributes:
        path: the file.
        problem: why the file cannot be used; "" if it can.
        facts: (heading, text) of what could be read, in the order to show them.
        transfer: what a run of another config would take from the file; None if none was given, or
            if the file cannot be used.
    """

    path: Path
    problem: str
    facts: tuple[tuple[str, str], ...] = ()
    transfer: TransferReport | None = None

    def describe(self) -> Iterator[tuple[str, str]]:
        """Yield the report line by line, each a heading and its text."""
        yield from self.facts
        if self.transfer is not None:
            yield from self.transfer.describe()
        yield ("not usable", self.problem) if self.problem else ("usable", "yes")


@checked
def check_checkpoint(
    path: str | Path, *, config: str | Path | RunConfig | None = None
) -> CheckpointReport:
    """Read a file of weights and try all that a command would do with it, on the CPU.

    Args:
        path: a file as for `Detector.from_checkpoint`.
        config: config as for `train`. The report then has the transfer of `finetune_from`, to a
            model with the classes of the file; no data set is read.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: the given config is wrong.
    """
    path = as_path("path", path)
    wanted = None if config is None else load_config(config)
    what = f"checkpoint {shown(path)}"
    facts: list[tuple[str, str]] = []
    try:
        weights = read_weights(path)
        facts += _describe_file(path, weights)
        run = validate_config(weights.config, source=what, ignore_unknown=True)
        space = weights.label_space or numbered_classes(weights)
        facts += _describe_detector(weights, run, space)
        with kept_torch_state("cpu"):
            model_with_weights(weights, run, what)
            report = None if wanted is None else _transfer(path, weights, space, wanted)
    except ValueError as error:
        return CheckpointReport(path, str(error), tuple(facts))
    return CheckpointReport(path, "", tuple(facts), report)


def _transfer(path: Path, weights: Weights, space: LabelSpace, config: RunConfig) -> TransferReport:
    _, report = FinetuneSource.of(path, weights).build_model(
        lambda _: build_model(config, num_classes=space.num_classes, load_backbone_weights=False),
        space,
        config.model.backbone,
    )
    return report


def _describe_file(path: Path, weights: Weights) -> Iterator[tuple[str, str]]:
    yield "source", weights.source
    state = weights.state_dict
    if weights.source == "native" and path.is_file():
        checkpoint = load_checkpoint(path)
        yield "seal", "intact" if is_sealed(path) else "none; the file is of an earlier version"
        yield "written by", f"version {_version(checkpoint.versions)}"
        yield "trained", f"{checkpoint.step} steps, {checkpoint.epoch} epochs"
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    yield "weights", f"{len(state)} tensors, {size / 1e6:.1f} MB in memory"
    yield "finite", describe_non_finite(state) or "all"


def _version(versions: Mapping[str, Any]) -> str:
    found = versions.get("deformable_detr")
    return shown(found) if isinstance(found, str) else "unknown"


def _describe_detector(
    weights: Weights, run: RunConfig, space: LabelSpace
) -> Iterator[tuple[str, str]]:
    model = run.model
    yield "variant", _variant(model)
    backbone: Any = model.backbone
    name = getattr(backbone, "name", None) or f"{backbone.kind} {getattr(backbone, 'depth', '')}"
    yield "backbone", f"{shown(name.strip())}, strides {list(backbone.out_strides)}"
    yield "neck", f"{model.neck.kind}, {model.neck.num_levels} levels"
    layers = f"{model.encoder.num_layers} encoder and {model.decoder.num_layers} decoder layers"
    yield "layers", f"{layers} of width {model.embed_dim}"
    yield "queries", f"{model.queries.num_queries}, {model.queries.kind}"
    known = "" if weights.label_space else ", not named in the file"
    yield "classes", f"{space.num_classes}{known}, {space.describe(limit=3)}"
    yield "images", f"shorter side {run.data.eval_size}, longer side {run.data.eval_max_size}"
    for assumption in weights.assumed:
        yield "assumed", assumption


def _variant(model: ModelConfig) -> str:
    """Return the variant of the paper, by what tells them apart."""
    if model.decoder.position == "reference":
        return "DINO"
    if model.queries.kind == "two_stage":
        return "two-stage, with box refinement"
    if model.decoder.box_refinement:
        return "iterative box refinement"
    if model.neck.num_levels == 1:
        is_dilated = getattr(model.backbone, "dilation", False)
        return "single scale, DC5" if is_dilated else "single scale"
    return "multi-scale"
