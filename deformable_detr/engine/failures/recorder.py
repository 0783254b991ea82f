"""FailureRecorder: diagnoses a non-finite step and saves a bundle that reproduces it."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass

from deformable_detr import distributed
from deformable_detr.data.collate import Batch
from deformable_detr.engine.failures.bundle import FailureBundle, batch_to_plain, state_on_cpu
from deformable_detr.engine.failures.causes import (
    WeightNorm,
    likely_cause,
    non_finite_weights,
    weight_norm,
)
from deformable_detr.engine.failures.replay import Examination, examine
from deformable_detr.engine.precision import low_precision
from deformable_detr.engine.run.folder import RunFolder
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.step import StepTotals, dropout_seed
from deformable_detr.environment import current_versions
from deformable_detr.losses.criterion import SetCriterion


class FailureRecorder:
    """Diagnosis of a failed step, with a bundle for each rank whose share was not finite.

    Args:
        folder: run folder, which receives the bundles.
        criterion: loss function.
        seed: seed of dropout.
    """

    def __init__(self, folder: RunFolder, criterion: SetCriterion, *, seed: int) -> None:
        self._folder = folder
        self._criterion = criterion
        self._seed = seed
        self._norms: list[WeightNorm] = []

    def note(self, state: TrainState) -> None:
        """Record the norm of the weights, which later shows whether they have diverged."""
        if not self._norms or self._norms[-1].step != state.step:
            self._norms.append(WeightNorm(state.step, weight_norm(state.model)))

    def write(self, state: TrainState, batches: Sequence[Batch], message: str) -> str:
        """Diagnose a failed step; every process must call, as the step has failed on every rank.

        Args:
            state: the state before the step.
            batches: this rank's micro-batches of the step.
            message: message of the error, which names the non-finite terms.

        Returns:
            The likely causes, and the paths of the bundles.
        """
        self.note(state)
        num_boxes = self._criterion.divisor(StepTotals.count(batches).objects)
        failing = self._find_failing(state, batches, num_boxes)
        has_any = any(distributed.all_gather_objects(failing.is_certain))
        report = ""
        if failing.is_certain or not has_any:
            bundle = self._bundle(state, failing, message)
            path = self._folder.failure(state.step, bundle.rank)
            then = f"run it again: deformable-detr doctor bundle {path}"
            try:
                bundle.save(path)
            except RuntimeError as error:  # a full disk must not hide the cause
                then = str(error)
            report = f"likely cause on rank {bundle.rank}: {bundle.cause} ({then})"
        return "; ".join(text for text in distributed.all_gather_objects(report) if text)

    def _find_failing(
        self, state: TrainState, batches: Sequence[Batch], num_boxes: float
    ) -> "_Failing":
        """Return the first micro-batch that fails again, or the last one if none does."""
        for index, batch in enumerate(batches):
            examination = self._run_again(state, batch, index, num_boxes, state.precision)
            if not examination.is_finite:
                break
        return _Failing(index, batch, num_boxes, examination, non_finite_weights(state.model))

    def _run_again(
        self, state: TrainState, batch: Batch, index: int, num_boxes: float, precision: str
    ) -> Examination:
        return examine(
            # A copy, as gradients of the detector itself would be sent to the other processes.
            copy.deepcopy(state.model),
            self._criterion,
            batch.to(state.device),
            num_boxes=num_boxes,
            dropout_seed=dropout_seed(self._seed, state.step, index),
            low_precision=low_precision(precision),
            loss_scale=state.scaler.get_scale(),
        )

    def _bundle(self, state: TrainState, failing: "_Failing", message: str) -> FailureBundle:
        index, batch, num_boxes = failing.index, failing.batch, failing.num_boxes
        in_float32 = None
        if state.precision != "float32":
            in_float32 = self._run_again(state, batch, index, num_boxes, "float32")
        rates = {group["role"]: group["lr"] for group in state.optimizer.param_groups}
        return FailureBundle(
            step=state.step,
            rank=distributed.rank(),
            message=message,
            cause=likely_cause(
                batch,
                examination=failing.examination,
                in_float32=in_float32,
                bad_weights=failing.bad_weights,
                weight_norms=self._norms,
                learning_rates=rates,
            ),
            **batch_to_plain(batch),
            num_boxes=num_boxes,
            dropout_seed=dropout_seed(self._seed, state.step, index),
            precision=state.precision,
            scaler=state.scaler.state_dict(),
            learning_rates=rates,
            weight_norms=[astuple(norm) for norm in self._norms],
            bad_weights=failing.bad_weights,
            examination=asdict(failing.examination),
            model=state_on_cpu(state.model.state_dict()),
            label_space=state.label_space.to_json(),
            config=state.config,
            versions=current_versions(),
        )


@dataclass(frozen=True)
class _Failing:
    """Micro-batch of a rank that is considered the cause of a failed step.

    Attributes:
        index: index of the micro-batch in the step.
        batch: the micro-batch.
        num_boxes: divisor of the losses of the step.
        examination: result of running the micro-batch again.
        bad_weights: names of weights that were not finite before the step.
    """

    index: int
    batch: Batch
    num_boxes: float
    examination: Examination
    bad_weights: list[str]

    @property
    def is_certain(self) -> bool:
        return self.bad_weights != [] or not self.examination.is_finite
