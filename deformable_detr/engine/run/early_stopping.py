"""Early stopping: the end of a run whose AP on the validation set no longer rises."""

from dataclasses import dataclass

from deformable_detr.engine.state import TrainState


@dataclass(frozen=True)
class EarlyStopping:
    """Rule of early stopping; its state is in `TrainState`, and so in every checkpoint.

    All processes have the same AP, so that they stop at the same step without an exchange.

    Attributes:
        patience: evaluations in a row without a rise, after which the run ends.
        min_delta: what AP must rise by, above the last AP that counted as a rise.
    """

    patience: int
    min_delta: float

    def note(self, state: TrainState, ap: float) -> None:
        """Note the AP of an evaluation in the state."""
        if state.reference_ap is None or ap > state.reference_ap + self.min_delta:
            state.reference_ap, state.evaluations_without_rise = ap, 0
        else:
            state.evaluations_without_rise += 1

    def reason(self, state: TrainState) -> str:
        """Return why the run ends now; "" if it goes on."""
        if state.evaluations_without_rise < self.patience:
            return ""
        more = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return (
            f"stopped early at step {state.step}: AP has not risen{more} above "
            f"{state.reference_ap:.4f} in {state.evaluations_without_rise} evaluations"
        )
