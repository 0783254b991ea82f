"""FailureRecorder: what a run keeps in mind, and does, for the case that a step fails."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, astuple

from deformable_detr import distributed
from deformable_detr.data.collate import Batch
from deformable_detr.engine.checkpoint import current_versions
from deformable_detr.engine.examination import Examination, examine
from deformable_detr.engine.failure_bundle import (
    FailureBundle,
    batch_to_plain,
    state_on_cpu,
)
from deformable_detr.engine.forensics import (
    WeightNorm,
    likely_cause,
    non_finite_weights,
    weight_norm,
)
from deformable_detr.engine.precision import low_precision
from deformable_detr.engine.run_folder import RunFolder
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.step_losses import count_boxes, dropout_seed
from deformable_detr.losses.criterion import SetCriterion


class FailureRecorder:
    """Writes a bundle for each process whose share of a step was not finite.

    Args:
        folder: of the run; gets the bundles.
        criterion: that of the steps.
        seed: of dropout.
    """

    def __init__(self, folder: RunFolder, criterion: SetCriterion, *, seed: int) -> None:
        self._folder = folder
        self._criterion = criterion
        self._seed = seed
        self._norms: list[WeightNorm] = []

    def note(self, state: TrainState) -> None:
        """Remember how large the weights are now, which later tells whether they have exploded."""
        if not self._norms or self._norms[-1].step != state.step:
            self._norms.append(WeightNorm(state.step, weight_norm(state.model)))

    def write(self, state: TrainState, batches: Sequence[Batch], message: str) -> str:
        """Find out why a step failed; every process must call it, as in each it has failed.

        Args:
            state: as it was before the step.
            batches: this process's micro-batches of the step.
            message: what was found not to be finite.

        Returns:
            The likely causes, and where the bundles are, for people.
        """
        self.note(state)
        num_boxes = count_boxes(batches)
        bad_weights = non_finite_weights(state.model)
        # A copy, as gradients of the detector itself would go to the other processes.
        model = copy.deepcopy(state.model)

        def run_again(index: int, precision: str) -> Examination:
            return examine(
                model,
                self._criterion,
                batches[index].to(state.device),
                num_boxes=num_boxes,
                dropout_seed=dropout_seed(self._seed, state.step, index),
                low_precision=low_precision(precision),
                loss_scale=state.scaler.get_scale(),
            )

        for index in range(len(batches)):  # the last one if none fails again
            examination = run_again(index, state.precision)
            if not examination.is_finite:
                break
        is_own = bad_weights != [] or not examination.is_finite
        has_any = any(distributed.all_gather_objects(is_own))
        report = ""
        if is_own or not has_any:
            in_float32 = None if state.precision == "float32" else run_again(index, "float32")
            rates = {group["role"]: group["lr"] for group in state.optimizer.param_groups}
            cause = likely_cause(
                batches[index],
                examination=examination,
                in_float32=in_float32,
                bad_weights=bad_weights,
                weight_norms=self._norms,
                learning_rates=rates,
            )
            path = self._folder.failure(state.step, distributed.rank())
            bundle = FailureBundle(
                step=state.step,
                rank=distributed.rank(),
                message=message,
                cause=cause,
                **batch_to_plain(batches[index]),
                num_boxes=num_boxes,
                dropout_seed=dropout_seed(self._seed, state.step, index),
                precision=state.precision,
                scaler=state.scaler.state_dict(),
                learning_rates=rates,
                weight_norms=[astuple(norm) for norm in self._norms],
                bad_weights=bad_weights,
                examination=asdict(examination),
                model=state_on_cpu(state.model.state_dict()),
                label_space=state.label_space.to_json(),
                config=state.config,
                versions=current_versions(),
            )
            then = f"run it again: deformable-detr doctor bundle {path}"
            try:
                bundle.save(path)
            except (OSError, RuntimeError) as error:  # a full disk must not hide the cause
                then = f"{path} could not be written: {error}"
            report = f"likely cause in process {distributed.rank()}: {cause} ({then})"
        return "; ".join(text for text in distributed.all_gather_objects(report) if text)
