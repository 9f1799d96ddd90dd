"""Names of conditions, and how often training hides them."""

from typing import Final

from pydantic import Field, model_validator

from raygen.core.config import Config

__all__ = ["MODALITIES", "STYLE_COLUMNS", "ConditionDropout"]


STYLE_COLUMNS: Final = ("style_reference_a", "style_reference_b", "style_parts", "style_mix")


#: The condition columns that can become tensors here; `style` is read from the columns `style_*`.
MODALITIES: Final = ("mask", "attributes", "text", "hint")


class ConditionDropout(Config):
    """How often training hides conditions, so that guidance has the rows it subtracts.

    `null` hides all of them; `only[m]` hides all but m. Their sum is at most 1; the rest is seen whole.
    """

    null: float = Field(0.1, ge=0, le=1, description="fraction of rows that are trained without any condition")
    only: dict[str, float] = Field(
        default_factory=dict, description="fractions of rows that are trained with one condition only, by its name"
    )

    @model_validator(mode="after")
    def _at_most_one(self) -> "ConditionDropout":
        if any(p < 0 for p in self.only.values()) or self.null + sum(self.only.values()) > 1:
            raise ValueError("null and only are probabilities whose sum is at most 1")
        return self
