"""Writes a file of safetensors."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["save_tensors"]


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write `tensors` of torch with `metadata` as safetensors, without a copy of them; `OSError` where the disk fails.

    safetensors 0.8 reports a full disk as a `SafetensorError`, whose text has the number of the error.
    """
    path.touch()
    mode = path.stat().st_mode  # safetensors would make the file readable for its owner only
    try:
        save_file(dict(tensors), path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(path)) from error
    path.chmod(mode)
