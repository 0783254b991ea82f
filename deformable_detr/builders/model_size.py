"""Size of a detector, from its settings alone: checked before anything is built."""

import os
from collections.abc import Mapping

from torch import Tensor

from deformable_detr.config import ConfigError, ModelConfig

_BACKBONE = "backbone."
_BYTES = 4  # of a number in float32
_ATTENTION = 4  # of d x d: query, key, value and output


def least_parameters(config: ModelConfig) -> dict[str, int]:
    """Return a lower bound of the number of parameters of each section of the settings.

    It counts what grows with a setting: the attention and the feed-forward networks, the neck's
    projections, learned queries and positions. The backbone counts as nothing.

    Args:
        config: the settings of the model.
    """
    d, levels = config.embed_dim, config.neck.num_levels
    per_point = 3 * d * config.attention.num_heads * levels  # x, y and the weight

    def layer(ffn_dim: int, num_points: int) -> int:
        return 2 * d * d + 2 * d * ffn_dim + per_point * num_points

    encoder, decoder = config.encoder, config.decoder
    learned = config.queries.kind == "learned"
    cells = config.position.max_cells if config.position.kind == "learned" else 0
    return {
        "model.encoder": encoder.num_layers * layer(encoder.ffn_dim, encoder.num_points),
        "model.decoder": decoder.num_layers
        * (_ATTENTION * d * d + layer(decoder.ffn_dim, decoder.num_points)),
        "model.queries": 2 * d * config.queries.num_queries if learned else 0,
        "model.position": cells * d,
        "model.neck": d * levels,
    }


def require_memory_for(config: ModelConfig) -> None:
    """Raise if the machine has less memory than the model's parameters alone need.

    Raises:
        ConfigError: it names the section with the most parameters.
    """
    memory = _memory_of_machine()
    parts = least_parameters(config)
    needed = _BYTES * sum(parts.values())
    if memory is not None and needed > memory:
        raise ConfigError(
            f"{_largest(parts)}: must make a model that fits into memory, got one of at least "
            f"{needed / 1e9:.1f} GB of weights on a machine of {memory / 1e9:.1f} GB; lower its "
            "numbers, or model.embed_dim"
        )


def require_held_by(state: Mapping[str, Tensor], config: ModelConfig, what: str) -> None:
    """Raise if a file holds fewer numbers than the settings ask for.

    Args:
        state: the tensors of the file.
        config: the settings of the model.
        what: name of the file in errors.

    Raises:
        ValueError: it names the section with the most parameters.
    """
    held = sum(value.numel() for name, value in state.items() if not name.startswith(_BACKBONE))
    parts = least_parameters(config)
    if sum(parts.values()) > held:
        raise ValueError(
            f"{what} must hold the weights that its settings ask for, got {held} outside the "
            f"backbone, where {_largest(parts)} asks for {max(parts.values())} of at least "
            f"{sum(parts.values())}; use the config it was trained with"
        )


def _largest(parts: Mapping[str, int]) -> str:
    return max(parts, key=lambda part: parts[part])


def _memory_of_machine() -> int | None:
    """Return the bytes of physical memory; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # on Windows; an unknown name
        return None
