"""Base class, types and error shared by all sections of the config."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from deformable_detr.arguments import LARGEST_FLOAT, LARGEST_SEED
from deformable_detr.messages import in_brief

Side = Annotated[int, Field(gt=0, le=8192)]  # shorter side of an image: 805 MB at 8192 x 8192
LongSide = Annotated[int, Field(gt=0, le=16384)]
Groups = Annotated[int, Field(gt=0, le=4096)]  # of channels
Positive = Annotated[int, Field(gt=0)]  # only compared and multiplied in Python
Probability = Annotated[float, Field(ge=0, lt=1)]
Strides = Annotated[tuple[Positive, ...], Field(min_length=1)]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
PixelRange = tuple[Side, Side]


class ConfigError(ValueError):
    """Error in a config file or an override; the message starts with the path of the key."""


class FrozenModel(BaseModel):
    """Base of all sections: strict types, no unknown keys, frozen after construction.

    Integers fit into 64 bits, floats into float32.

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

    @field_validator("*")
    @classmethod
    def _require_fitting(cls, value: Any) -> Any:
        """Refuse numbers that are too large for what holds them later."""
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float):
                limit = LARGEST_SEED if isinstance(number, int) else LARGEST_FLOAT
                if abs(number) > limit:
                    raise ValueError(f"must be at most {limit}, got {in_brief(number)}")
        return value


def require_increasing(name: str, pair: tuple[float, float]) -> None:
    """Raise a ValueError unless the pair is (low, high)."""
    if pair[0] > pair[1]:
        raise ValueError(f"{name} must be (low, high), got {list(pair)}")
