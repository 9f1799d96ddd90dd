"""Selection of images: gates over scores, new attempts for what was refused, and failure analysis.

A new gate is one module with a `Gate` and its name in `GATES`.
"""

from typing import Annotated, Any, Final, Union

from pydantic import Field

from raygen.selection.gates import Gate, ScoreGate
from raygen.selection.identity_gates import IdentityGate, LeakGate

__all__ = ["GATES", "Gate", "IdentityGate", "LeakGate", "ScoreGate", "gate_field"]


#: Every gate that a job can name, by its `kind`.
GATES: Final[dict[str, type[Gate]]] = {"score": ScoreGate, "identity": IdentityGate, "leak": LeakGate}


def gate_field() -> Any:
    """The type of a field that holds a gate: the union of `GATES`, told apart by `kind`."""
    return Annotated[Union[tuple(GATES.values())], Field(discriminator="kind")]  # noqa: UP007
