import errno
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from raygen.store.tensor_file import save_tensors


def test_a_disk_that_takes_no_more_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """safetensors 0.8.0 raises a `SafetensorError` there, which is no `OSError`: found on a full tmpfs."""
    path = tmp_path / "model.safetensors"
    save_tensors({"x": torch.arange(3)}, path, {"of": "a test"})
    assert torch.equal(load_file(path)["x"], torch.arange(3))
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match=r"model\.safetensors") as raised:
            save_tensors({"x": torch.zeros(100_000)}, path, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.errno == errno.EFBIG
