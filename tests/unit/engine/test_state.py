from dataclasses import replace

import pytest
import torch
from helpers.tiny_training import tiny_state, weights

from deformable_detr.labels import LabelSpace

OTHER_CLASSES = LabelSpace((1, 2, 8), ("a", "b", "d"))


def test_a_checkpoint_of_other_classes_raises() -> None:
    saved = tiny_state().to_checkpoint()
    other = replace(saved, label_space=OTHER_CLASSES)
    with pytest.raises(
        ValueError,
        match=r"the training set must have the categories of checkpoint x\.pth, "
        r"got \{1: a, 2: b, 7: c\} where checkpoint x\.pth has \{1: a, 2: b, 8: d\}; "
        r"only the training set has \{7: c\}; only checkpoint x\.pth has \{8: d\}$",
    ):
        tiny_state().restore(other, "checkpoint x.pth")


def test_a_checkpoint_of_weights_only_cannot_be_resumed() -> None:
    converted = replace(tiny_state().to_checkpoint(), optimizer={}, label_space=OTHER_CLASSES)
    state = tiny_state()
    before = weights(state)
    with pytest.raises(
        ValueError,
        match=r"checkpoint x\.pth must hold the state of an optimizer to be resumed, got weights "
        r"only; start a new run from them with --finetune-from",
    ):
        state.restore(converted, "checkpoint x.pth")
    assert all(a.equal(b) for a, b in zip(before, weights(state), strict=True))


def test_a_resumed_run_remembers_what_it_was_fine_tuned_from() -> None:
    saved = tiny_state()
    saved.origin = "fine-tuned from a.pth"
    resumed = tiny_state()
    resumed.restore(saved.to_checkpoint(), "checkpoint x.pth")
    assert resumed.to_checkpoint().origin == "fine-tuned from a.pth"


def test_a_newly_enabled_average_starts_at_the_weights() -> None:
    saved = tiny_state()
    with torch.no_grad():
        saved.model.box_head.bias.fill_(7.0)
    resumed = tiny_state(ema_decay=0.9)
    resumed.restore(saved.to_checkpoint(), "checkpoint x.pth")
    assert resumed.ema is not None
    assert resumed.ema.model.box_head.bias.eq(7.0).all()
