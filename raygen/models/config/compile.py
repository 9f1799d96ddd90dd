"""The setting `compile`."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

__all__ = ["Compile"]


def _from_yaml(value: Any) -> Any:
    """YAML reads `off` as false."""
    return {False: "off", True: "default"}[value] if isinstance(value, bool) else value


#: Whether torch compiles the repeated blocks of networks; max-autotune also tries several kernels.
Compile = Annotated[Literal["off", "default", "max-autotune"], BeforeValidator(_from_yaml)]
