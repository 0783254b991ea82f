"""Detection of the implementation that a state_dict comes from."""

from collections.abc import Collection
from typing import Literal, get_args

from deformable_detr.conversion.layout import Layout
from deformable_detr.conversion.sources.detrex import DETREX
from deformable_detr.conversion.sources.detrex_dino import DETREX_DINO
from deformable_detr.conversion.sources.dino import DINO
from deformable_detr.conversion.sources.mmdetection import MMDETECTION
from deformable_detr.conversion.sources.mmdetection_dino import MMDETECTION_DINO
from deformable_detr.conversion.sources.official import OFFICIAL
from deformable_detr.conversion.sources.transformers import TRANSFORMERS
from deformable_detr.messages import in_brief, shown

Source = Literal[
    "native", "official", "transformers", "detrex", "mmdet", "dino", "detrex-dino", "mmdet-dino"
]
SOURCES: tuple[Source, ...] = get_args(Source)
NATIVE_SIGNATURE = "memory_builder.level_embed"
_LAYOUTS: dict[str, Layout] = {
    layout.source: layout
    for layout in (OFFICIAL, TRANSFORMERS, DETREX, MMDETECTION, DINO, DETREX_DINO, MMDETECTION_DINO)
}
DINO_SOURCES = tuple(source for source, layout in _LAYOUTS.items() if layout.is_dino)
# DINO's files also have the keys that tell apart the files of their authors' Deformable DETR.
_MOST_SPECIFIC_FIRST = sorted(_LAYOUTS.values(), key=lambda layout: -len(layout.signature))
_SHOWN_KEYS = 3


def layout_of(source: str) -> Layout:
    """Return the table of a source other than "native".

    Raises:
        ValueError: the source is unknown.
    """
    if source not in _LAYOUTS:
        raise ValueError(f"source must be one of {', '.join(_LAYOUTS)}, got {in_brief(source)}")
    return _LAYOUTS[source]


def recognize(keys: Collection[str], what: str = "weights") -> str:
    """Return the source of a state_dict with the given keys.

    Args:
        keys: keys of the state_dict, without prefixes of wrappers.
        what: description of the state_dict for error messages.

    Raises:
        ValueError: the keys match no source; the message lists some of them.
    """
    if NATIVE_SIGNATURE in keys:
        return "native"
    for layout in _MOST_SPECIFIC_FIRST:
        if all(key in keys for key in layout.signature):
            return layout.source
    signatures = (layout.signature[0] for layout in _LAYOUTS.values())
    some = ", ".join(map(shown, sorted(keys)[:_SHOWN_KEYS]))
    raise ValueError(
        f"{what} must be a Deformable DETR of {', '.join(SOURCES)}, got {len(keys)} tensors "
        f"({some}{', ...' if len(keys) > _SHOWN_KEYS else ''}) without any of "
        + ", ".join(dict.fromkeys([NATIVE_SIGNATURE, *signatures]))
    )
