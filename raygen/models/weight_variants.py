"""Folders of diffusers and transformers whose weights are stored in half precision or as pickles, made readable.

Their loaders open `NAME.safetensors` or its index. Other weights are put under that name into a temporary folder: one
file of safetensors by a link, anything else by writing it anew. Pickles are read as data.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from torch import Tensor

from raygen.core.errors import InputError
from raygen.models.checkpoint_documents import STEMS, weight_file
from raygen.store.not_weights import check_start
from raygen.store.tensor_file import save_tensors
from raygen.store.weight_file import open_weights

__all__ = ["readable"]


#: Endings of weights under names, or in formats, that nothing here opens.
OTHERS: Final = frozenset({".safetensors", ".bin", ".msgpack", ".onnx", ".h5", ".ckpt", ".pt", ".pth", ".gguf"})


@contextmanager
def readable(folder: Path) -> Iterator[Path]:
    """`folder`, or a temporary one with the same model, which the loaders open with `use_safetensors=True`.

    `InputError` (`weights`) where a file is something else, such as a pointer of git-lfs, or damaged.
    """
    source = weight_file(folder)
    if source is None or source.name in {f"{stem}.safetensors{i}" for stem, _ in STEMS for i in ("", ".index.json")}:
        for path in folder.glob("*.safetensors"):
            check_start(path)
        others = sorted(p.name for p in folder.glob("*") if p.suffix in OTHERS) if source is None else []
        if others:
            names = f"{STEMS[0][0]}.safetensors or {STEMS[1][0]}.safetensors"
            raise InputError(
                f"{folder}: has {', '.join(others[:3])}, and {names} is needed, whole or with its index, of full "
                "precision, fp16 or bf16, or as .bin",
                reason="weights",
            )
        yield folder
        return
    with TemporaryDirectory() as name:
        copy = Path(name)
        for path in folder.glob("*.json"):
            if ".index" not in path.suffixes:
                shutil.copy(path, copy)
        stem = next(stem for stem, pickled in STEMS if source.name.startswith((stem, pickled)))
        target = copy / f"{stem}.safetensors"
        if source.suffix == ".safetensors":
            check_start(source)
            target.symlink_to(source.resolve())
        else:
            _write(source, target)
        yield copy


def _write(source: Path, target: Path) -> None:
    """The tensors of a file, or of those of an index, as one file of safetensors."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, entry in open_weights(source).tensors.items():
        tensor = entry.read().contiguous()
        # safetensors refuses tensors that share memory, as tied weights do in a pickle.
        tensors[name] = tensor.clone() if tensor.data_ptr() in seen else tensor
        seen.add(tensor.data_ptr())
    if not tensors:
        raise InputError(f"{source}: holds no tensors", reason="weights")
    save_tensors(tensors, target, {})
