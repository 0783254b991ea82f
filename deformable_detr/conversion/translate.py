"""A state_dict from one set of names to another, by a source's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deformable_detr.conversion.layout import DetectorStructure, Layout, NamePair, name_pairs

_WRAPPER = "module."  # of nn.DataParallel and its like
# Counters of batch norm, of profilers, and what self-supervised training leaves.
_IGNORED_ENDINGS = ("num_batches_tracked", "total_params", "total_ops", ".momentum")
_NUM_PARTS = 3


@dataclass(frozen=True)
class Translation:
    """A state_dict with our names, and what was wrong with it.

    Attributes:
        state_dict: tensors by our names, as far as they were there.
        their_names: the first of their names of each.
        problems: what is missing, too many, or contradicts itself; one phrase each.
    """

    state_dict: dict[str, Tensor]
    their_names: dict[str, str]
    problems: tuple[str, ...]


def clean(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Weights by their plain names, and the names of what carries none."""
    prefix = _WRAPPER if state and all(name.startswith(_WRAPPER) for name in state) else ""
    ignored = tuple(name for name in state if name.endswith(_IGNORED_ENDINGS))
    kept = {
        name.removeprefix(prefix): tensor for name, tensor in state.items() if name not in ignored
    }
    return kept, ignored


def to_ours(
    layout: Layout, structure: DetectorStructure, state: Mapping[str, Tensor]
) -> Translation:
    """Their tensors by our names."""
    groups: dict[str, list[NamePair]] = {}
    for pair in name_pairs(layout, structure):
        groups.setdefault(pair.ours, []).append(pair)
    ours: dict[str, Tensor] = {}
    absent: list[str] = []
    contradicting: list[str] = []
    for name, group in groups.items():
        missing = _missing(group, state, tied_may_be_absent=layout.tied_may_be_absent)
        absent += missing
        if not missing:
            ours[name], wrong = _take(group, state)
            contradicting += wrong
    known = {pair.theirs for group in groups.values() for pair in group}
    extra = [name for name in state if name not in known]
    problems = tuple(
        f"{problem.format(len(names))}, first: {names[0]}"
        for names, problem in (
            (absent, "lacks {} tensors"),
            (extra, "has {} tensors that do not belong there"),
            (contradicting, "has {} tensors that contradict others"),
        )
        if names
    )
    first_names = {name: group[0].theirs for name, group in groups.items()}
    return Translation(ours, first_names, problems)


def _missing(
    group: Sequence[NamePair], state: Mapping[str, Tensor], *, tied_may_be_absent: bool
) -> list[str]:
    """Names that must be there, of the names of one of our tensors, and are not."""
    names = [pair.theirs for pair in group if not pair.zero_if_absent]
    missing = [name for name in names if name not in state]
    is_tied = tied_may_be_absent and group[0].part is None
    return [] if is_tied and len(missing) < len(names) else missing


def _take(group: Sequence[NamePair], state: Mapping[str, Tensor]) -> tuple[Tensor, list[str]]:
    """One of our tensors from what they have of it, and names that contradict each other."""
    there = [(pair, state[pair.theirs]) for pair in group if pair.theirs in state]
    if not there:
        return _zero_bias(group[0], state), []
    first = there[0][1]
    if group[0].part is None:
        return first, [pair.theirs for pair, tensor in there[1:] if not _same(first, tensor)]
    parts = [tensor for _, tensor in sorted(there, key=lambda item: item[0].part or 0)]
    if any(part.shape != first.shape for part in parts):
        return first, [there[0][0].theirs]
    return torch.cat(parts), []


def to_theirs(
    layout: Layout, structure: DetectorStructure, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Our tensors by their names, in their order.

    Raises:
        ValueError: the source has no name for one of them.
    """
    pairs = name_pairs(layout, structure)
    nameless = sorted(state.keys() - {pair.ours for pair in pairs})
    if nameless:
        raise ValueError(
            f"model must have parts that {layout.source} has too, got {nameless[0]}; "
            "it cannot be expressed there"
        )
    optional = [state[pair.ours] for pair in pairs if pair.zero_if_absent]
    leave_out = not any(bool(tensor.any()) for tensor in optional)
    theirs = {}
    for pair in pairs:
        if pair.zero_if_absent and leave_out:
            continue
        tensor = state[pair.ours]
        theirs[pair.theirs] = tensor if pair.part is None else tensor.chunk(_NUM_PARTS)[pair.part]
    return theirs


def _zero_bias(pair: NamePair, state: Mapping[str, Tensor]) -> Tensor:
    """The bias that a convolution without one has."""
    weight = state.get(pair.theirs.removesuffix("bias") + "weight")
    return torch.zeros(0) if weight is None else weight.new_zeros(weight.shape[0])


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether values are equal, NaN included; quick where both are one tensor."""
    if one.data_ptr() == other.data_ptr() and one.shape == other.shape:
        return True
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())
