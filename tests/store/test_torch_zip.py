"""What torch.save writes: every byte that is read was compared with the check sum beside it."""

from pathlib import Path

import pytest
import torch

from raygen.core.errors import InputError
from raygen.store.weight_file import open_weights

TENSORS = {"a": torch.arange(40.0), "b": torch.full((3,), 7, dtype=torch.int64)}
TENSORS |= {"view": TENSORS["a"][4:8]}


def read(path: Path) -> dict[str, torch.Tensor]:
    return {name: entry.read() for name, entry in open_weights(path).tensors.items()}


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_no_flipped_bit_becomes_another_weight(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(TENSORS, path)
    assert same(read(path))
    whole = path.read_bytes()
    refused = 0
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            assert same(read(path)), at
        except InputError:
            refused += 1
    assert refused > len(whole) // 3  # the rest is padding, and what is not read


def test_a_damaged_storage_is_named_when_it_is_read(tmp_path: Path) -> None:
    """torch.load of torch 2.15.0 gives the damaged value."""
    path = tmp_path / "model.pt"
    torch.save(TENSORS, path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(TENSORS["a"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(damaged)
    assert not torch.equal(torch.load(path)["a"], TENSORS["a"])
    tensors = open_weights(path).tensors
    for name in ("a", "view"):
        with pytest.raises(InputError, match=r"model\.pt: data/0 is damaged"):
            tensors[name].read()
    assert torch.equal(tensors["b"].read(), TENSORS["b"])


def test_a_file_without_check_sums_is_read(tmp_path: Path) -> None:
    """torch 2.15.0 leaves zeros where it is told to compute none, which zipfile takes for damage."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(TENSORS, tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(read(tmp_path / "model.pt"))
