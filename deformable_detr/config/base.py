"""What the models of all sections share."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Probability = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
Strides = Annotated[tuple[Positive, ...], Field(min_length=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
PixelRange = tuple[Positive, Positive]


class ConfigError(ValueError):
    """A config file or an override is wrong; the message starts with the key's path."""


class FrozenModel(BaseModel):
    """Exact types, no unknown keys, no change after construction.

    The string below a field describes it, in `docs/settings.md` too. A `kind` is described by its
    class.
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
    """Refuse a pair that is not (low, high)."""
    if pair[0] > pair[1]:
        raise ValueError(f"{name} must be (low, high), got {list(pair)}")
