"""Replay of the failed step that a failure bundle holds."""

from dataclasses import dataclass
from pathlib import Path

from deformable_detr.arguments import checked
from deformable_detr.builders import build_criterion, build_model
from deformable_detr.builders.model_size import require_held_by
from deformable_detr.config.loading import validate_config
from deformable_detr.engine.checkpoints.checkpoint import load_weights
from deformable_detr.engine.failures.bundle import FailureBundle
from deformable_detr.engine.failures.replay import Examination, examine
from deformable_detr.files import as_path
from deformable_detr.messages import shown
from deformable_detr.workflows.session import kept_torch_state


@dataclass(frozen=True)
class ReplayResult:
    """Failed step as recorded by the run, and as recomputed on this machine's CPU.

    Attributes:
        bundle: the record of the run.
        examination: the examination of the recomputed step.
    """

    bundle: FailureBundle
    examination: Examination


@checked
def replay_bundle(path: str | Path) -> ReplayResult:
    """Recompute the step of a failure bundle on the CPU.

    Args:
        path: `failure_step_N_rank_R.pth` of a run folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a bundle, or is damaged.
    """
    found = FailureBundle.load(as_path("path", path))
    what = f"bundle {shown(path)}"
    config = validate_config(found.config, source=what, ignore_unknown=True)
    require_held_by(found.model, config.model, what)
    with kept_torch_state("cpu"):
        model = build_model(
            config, num_classes=len(found.label_space), load_backbone_weights=False
        ).train()
        load_weights(model, found.model, what)
        examination = examine(
            model,
            build_criterion(config),
            found.batch,
            num_boxes=found.num_boxes,
            dropout_seed=found.dropout_seed,
            low_precision=found.low_precision,
            loss_scale=found.loss_scale,
        )
    return ReplayResult(found, examination)
