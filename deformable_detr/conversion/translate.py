"""Translate a state_dict from one set of names to another, by a source's table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deformable_detr.conversion.layout import DetectorStructure, Layout, NamePair, name_pairs
from deformable_detr.messages import shown

_WRAPPER = "module."  # of nn.DataParallel and similar wrappers
# Counters of batch norm and profilers, and leftovers of self-supervised training.
_IGNORED_ENDINGS = ("num_batches_tracked", "total_params", "total_ops", ".momentum")
_NUM_PARTS = 3


@dataclass(frozen=True)
class Translation:
    """State_dict with our names, and problems found in it.

    Attributes:
        state_dict: tensors by our names, without missing ones.
        their_names: first of their names, by our name.
        problems: missing, unexpected or conflicting tensors, one phrase each.
    """

    state_dict: dict[str, Tensor]
    their_names: dict[str, str]
    problems: tuple[str, ...]


def clean(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Strip wrapper prefixes; return the weights, and the names of ignored non-weights."""
    prefix = _WRAPPER if state and all(name.startswith(_WRAPPER) for name in state) else ""
    ignored = tuple(name for name in state if name.endswith(_IGNORED_ENDINGS))
    kept = {
        name.removeprefix(prefix): tensor for name, tensor in state.items() if name not in ignored
    }
    return kept, ignored


def to_ours(
    layout: Layout, structure: DetectorStructure, state: Mapping[str, Tensor]
) -> Translation:
    """Translate their tensors to our names."""
    groups: dict[str, list[NamePair]] = {}
    for pair in name_pairs(layout, structure):
        groups.setdefault(pair.ours, []).append(pair)
    ours: dict[str, Tensor] = {}
    absent: list[str] = []
    conflicting: list[str] = []
    for name, group in groups.items():
        missing = _missing(group, state, tied_may_be_absent=layout.tied_may_be_absent)
        absent += missing
        if not missing:
            ours[name], wrong = _take(group, state)
            conflicting += wrong
    known = {pair.theirs for group in groups.values() for pair in group}
    extra = [name for name in state if name not in known]
    problems = tuple(
        f"{problem.format(len(names))}, first: {shown(names[0])}"
        for names, problem in (
            (absent, "is missing {} tensors"),
            (extra, "has {} unexpected tensors"),
            (conflicting, "has {} tensors that conflict with others"),
        )
        if names
    )
    first_names = {name: group[0].theirs for name, group in groups.items()}
    return Translation(ours, first_names, problems)


def _missing(
    group: Sequence[NamePair], state: Mapping[str, Tensor], *, tied_may_be_absent: bool
) -> list[str]:
    """Return the required names of one of our tensors that are missing."""
    names = [pair.theirs for pair in group if not pair.zero_if_absent]
    missing = [name for name in names if name not in state]
    is_tied = tied_may_be_absent and group[0].part is None
    return [] if is_tied and len(missing) < len(names) else missing


def _take(group: Sequence[NamePair], state: Mapping[str, Tensor]) -> tuple[Tensor, list[str]]:
    """Return one of our tensors, built from theirs, and the names of conflicting tensors."""
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
    """Translate our tensors to their names, in their order.

    Raises:
        ValueError: the source has no name for one of the tensors.
    """
    pairs = name_pairs(layout, structure)
    nameless = sorted(state.keys() - {pair.ours for pair in pairs})
    if nameless:
        raise ValueError(
            f"model must have parts that {layout.source} has too, got {shown(nameless[0])}; "
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
    return layout.complete(theirs)


def _zero_bias(pair: NamePair, state: Mapping[str, Tensor]) -> Tensor:
    """Return a zero bias for a convolution without bias."""
    weight = state.get(pair.theirs.removesuffix("bias") + "weight")
    return torch.zeros(0) if weight is None else weight.new_zeros(weight.shape[0])


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether values are equal, NaN included; fast if both share their memory."""
    if one.data_ptr() == other.data_ptr() and one.shape == other.shape:
        return True
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())
