"""Base class, types and error shared by all sections of the config."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Strides = Annotated[tuple[Positive, ...], Field(min_length=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
PixelRange = tuple[Positive, Positive]


class ConfigError(ValueError):
    """Error in a config file or an override; the message starts with the path of the key."""


class FrozenModel(BaseModel):
    """Base of all sections: strict types, no unknown keys, frozen after construction.

    The string below a field describes it, also in `docs/settings.md`. A `kind` is described by the
    docstring of its class.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        use_attribute_docstrings=True,
    )


def require_increasing(name: str, pair: tuple[float, float]) -> None:
    """Raise a ValueError unless the pair is (low, high)."""
    if pair[0] > pair[1]:
        raise ValueError(f"{name} must be (low, high), got {list(pair)}")
