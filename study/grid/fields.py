"""The base of every declared thing, and the marks that say what a field means for a run's identity."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, Strict


class Declared(BaseModel):
    """A frozen, strictly typed piece of a grid; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def ineffective(self) -> set[str]:
        """Names of fields that cannot change a result in this combination of values."""
        return set()


@dataclass(frozen=True)
class NoEffect:
    """Mark of a field that can never change a result (a path, a worker count): left out of the identity."""


@dataclass(frozen=True)
class Neutral:
    """Mark of a field added later: at this value a run keeps the identity it had before the field existed."""

    value: Any


Sequence = Strict(False)  # YAML has lists only; a declared tuple may be given as one
Ints = Annotated[tuple[PositiveInt, ...], Sequence, Field(min_length=1)]
Names = Annotated[tuple[str, ...], Sequence, Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
