"""Aliases for numpy arrays by their element type, and names that settings of several rooms share."""

from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

__all__ = [
    "PRECISION",
    "AnyArray",
    "BoolArray",
    "Float32Array",
    "Float64Array",
    "Int64Array",
    "Precision",
    "TunedPrecision",
    "UInt8Array",
]

AnyArray = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]
Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]

#: How networks compute; see `raygen/core/precision.py`.
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
#: The same where weights are trained or tuned: float16 would need losses that are scaled.
TunedPrecision = Literal["float32", "tf32", "bfloat16"]
#: Description of the setting `precision`.
PRECISION: Final = (
    "how the networks compute. float32: in full, TF32 is off; tf32: float32 with TF32 products, NVIDIA GPUs only; the "
    "others in half precision"
)
