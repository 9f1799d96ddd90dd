"""Files that are programs, lies or ruins are refused by name before anything of theirs runs; files that are well."""

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raygen.core.errors import InputError
from raygen.store.pickle_reader import read_pickle
from raygen.store.weight_file import open_weights

MARK = "raygen_was_here"


class Reduced:
    """Calls the shell when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {MARK}",)


class Nested:
    """A pickle inside a pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pickle.loads, (pickle.dumps(Reduced()),)


def _torch(value: Any, path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2), "b": value}}, path)


def _pickle(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


def _in_zip(data: bytes, *, compress: int = zipfile.ZIP_STORED, storage: bytes = b"\0" * 8) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", compress) as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/data/0", storage)

    return write


def _tensor(shape: str, stride: str, elements: int = 2, key: bytes = b"0") -> bytes:
    """A state dict {"a": tensor} whose shape and stride are given as opcodes."""
    name = b"X" + struct.pack("<I", len(key)) + key
    return (
        b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
        + name
        + b"X\x03\x00\x00\x00cpuJ"
        + struct.pack("<i", elements)
        + b"tQK\x00"
        + shape.encode("latin1")
        + stride.encode("latin1")
        + b"\x89}tRs."
    )


def _safetensors(header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Callable[[Path], Any]:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return lambda path: path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


CALLS = f"cos\nsystem\n(X\x0f\x00\x00\x00touch {MARK[:9]}tR.".encode()
HUGE = "J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"  # (2**31 - 1, 2**31 - 1)
EVIL: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    # name -> (suffix, reason, how it is written)
    "reduce": (".ckpt", "unsafe", lambda path: _torch(Reduced(), path)),
    "reduce in the older format": (
        ".ckpt",
        "unsafe",
        lambda path: torch.save({"a": Reduced()}, path, _use_new_zipfile_serialization=False),
    ),
    "bare pickle": (".pkl", "unsafe", _pickle(pickle.dumps({"w": Reduced()}))),
    "global": (".pth", "unsafe", _in_zip(b"\x80\x02}X\x01\x00\x00\x00acbuiltins\neval\ns.")),
    "stack global": (".pth", "unsafe", _in_zip(b"\x80\x04\x8c\x02os\x8c\x06system\x93.")),
    "nested": (".pkl", "unsafe", _pickle(pickle.dumps({"w": Nested()}))),
    "nested loader": (".pth", "unsafe", _in_zip(b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x01aR.")),
    "build on a function": (".pth", "unsafe", _in_zip(b"\x80\x02ccollections\nOrderedDict\n}b.")),
    "build on a tensor": (".pth", "unsafe", _in_zip(_tensor("K\x02\x85", "K\x01\x85")[:-2] + b"}b.")),
    "call of a result": (".pth", "unsafe", _in_zip(b"\x80\x02ccollections\nOrderedDict\n)R)R.")),
    "instance opcode": (".pkl", "unsafe", _pickle(b"(X\x01\x00\x00\x00aios\nsystem\n.")),
    "extension opcode": (".pkl", "unsafe", _pickle(b"\x80\x02\x82\x01.")),
    "old-style call": (".pkl", "unsafe", _pickle(CALLS)),
    "torchscript": (".pt", "unsafe", lambda path: torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))),
    "huge shape": (".pth", "weights", _in_zip(_tensor(HUGE, "J\xff\xff\xff\x7fK\x01\x86"))),
    "endless repetition": (".pth", "weights", _in_zip(_tensor(HUGE, "K\x00K\x00\x86"))),
    "storage larger than its record": (".pth", "weights", _in_zip(_tensor("K\x02\x85", "K\x01\x85", elements=1 << 30))),
    "storage that is not there": (".pth", "weights", _in_zip(_tensor("K\x02\x85", "K\x01\x85", key=b"../x"))),
    "compressed": (
        ".pth",
        "weights",
        _in_zip(_tensor("K\x02\x85", "K\x01\x85"), compress=zipfile.ZIP_DEFLATED, storage=b"\0" * (1 << 20)),
    ),
    "deep key": (".pkl", "weights", _pickle(b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s.")),
    "endless text": (".pkl", "weights", _pickle(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f")),
    "huge header": (".safetensors", "weights", _safetensors(b"{}", length=1 << 60)),
    "header of a shape without data": (
        ".safetensors",
        "weights",
        _safetensors({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    ),
    "header whose shape does not fit": (
        ".safetensors",
        "weights",
        _safetensors({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}}, b"\0" * 8),
    ),
    "header that is no JSON": (".safetensors", "weights", _safetensors(b"{" * 100_000)),
}


@pytest.mark.parametrize("name", EVIL)
def test_a_malicious_file_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    suffix, reason, write = EVIL[name]
    path = tmp_path / f"evil{suffix}"
    write(path)
    with pytest.raises(InputError) as caught:
        open_weights(path)
    assert caught.value.reason == reason
    assert str(path) in str(caught.value)
    assert not list(tmp_path.glob("raygen*"))


def test_the_names_in_a_file_are_never_imported(tmp_path: Path) -> None:
    """A class of a training program stands in a file; a module of that name must not be run for it."""
    (tmp_path / "ldm").mkdir()
    (tmp_path / "ldm" / "__init__.py").write_text(f"open({MARK!r}, 'w')")
    pickled = b"\x80\x02}(X\x01\x00\x00\x00acldm.models\nThing\n)R}X\x01\x00\x00\x00bK\x01sbX\x01\x00\x00\x00w"
    whole = _tensor("K\x02\x85", "K\x01\x85")
    _in_zip(pickled + whole[whole.index(b"ctorch._utils") : -2] + b"u.")(tmp_path / "m.ckpt")
    script = "from raygen.store.weight_file import open_weights\nprint(sorted(open_weights('m.ckpt').tensors))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
    )
    assert run.stdout.strip() == "['w']"
    assert not (tmp_path / MARK).exists()


# --- files that are well ------------------------------------------------------------------------------------


def _state() -> dict[str, Tensor]:
    shared = torch.randn(4, 6)
    return OrderedDict(
        a=torch.randn(3, 4),
        turned=shared.t(),
        part=shared[1:3, ::2],
        one=torch.tensor(3.5),
        none=torch.zeros(0, 3),
        half=torch.randn(5).half(),
        brain=torch.randn(5).bfloat16(),
        whole=torch.arange(7),
        bits=torch.tensor([True]),
        parameter=torch.nn.Parameter(torch.randn(2)),
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_of_torch_are_read_to_the_last_bit(zipped: bool, tmp_path: Path) -> None:
    state = _state()
    document = {
        "state_dict": state,
        "epoch": 4,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(9)}}}],
        "lr_schedulers": [],
        "pytorch-lightning_version": "1.4.2",
    }
    torch.save(document, tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped)
    file = open_weights(tmp_path / "m.ckpt")
    assert set(file.tensors) == set(state)
    for name, value in state.items():
        read = file.tensors[name].read()
        assert read.dtype == value.dtype, name
        assert torch.equal(read, value.detach()), name
        assert file.tensors[name].shape == tuple(value.shape)
    assert file.beside["optimizer_states"] == "1 tensors"
    assert file.beside["epoch"] == "4"


def test_what_lightning_leaves_beside_the_weights_is_passed_by(tmp_path: Path) -> None:
    """Its checkpoints name classes of callbacks, and settings of programs that are not here."""
    from typing import cast

    module = type(sys)("pytorch_lightning")
    inner = type(sys)("pytorch_lightning.callbacks")
    checkpoint = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks"})
    cast(Any, inner).ModelCheckpoint = checkpoint
    sys.modules |= {"pytorch_lightning": module, "pytorch_lightning.callbacks": inner}
    try:
        settings = checkpoint()
        settings.best = 3
        document = {"state_dict": {"w": torch.ones(2)}, "callbacks": {checkpoint: {"best": 1}}, "settings": settings}
        torch.save(document, tmp_path / "m.ckpt")
    finally:
        del sys.modules["pytorch_lightning"], sys.modules["pytorch_lightning.callbacks"]
    file = open_weights(tmp_path / "m.ckpt")
    assert list(file.tensors) == ["w"]
    assert file.beside["callbacks"] == "1 entries"


def test_the_state_of_random_numbers_is_passed_by(tmp_path: Path) -> None:
    random = np.random.RandomState(3)
    document = {"state_dict": {"w": torch.ones(2)}, "random": {"old": random, "new": np.random.default_rng(1)}}
    torch.save(document, tmp_path / "m.ckpt")
    file = open_weights(tmp_path / "m.ckpt")
    assert list(file.tensors) == ["w"]
    assert file.beside["random"] == "2 entries"


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_arrays_are_read(protocol: int, tmp_path: Path) -> None:
    arrays = {
        "w": np.random.default_rng(0).normal(size=(3, 4)).astype("f4"),
        "turned": np.asfortranarray(np.eye(3)[:2]),
    }
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(arrays, protocol=protocol))
    file = open_weights(tmp_path / "w.pkl")
    for name, value in arrays.items():
        assert np.array_equal(file.tensors[name].read().numpy(), value)


def test_pickles_of_python_2_are_read(tmp_path: Path) -> None:
    """Their strings are bytes; VGGFace2's weights are such a file."""
    raw = np.arange(3, dtype="<f4").tobytes()
    data = (
        b"\x80\x02}U\x01wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U"
        + bytes([len(raw)])
        + raw
        + b"tbs."
    )
    (tmp_path / "w.pkl").write_bytes(data)
    assert open_weights(tmp_path / "w.pkl").tensors["w"].read().tolist() == [0, 1, 2]


def test_a_pickle_of_noise_is_refused_whatever_it_is(tmp_path: Path) -> None:
    import io

    rng = np.random.default_rng(0)
    for _ in range(300):
        data = b"\x80\x02" + rng.integers(0, 256, 40, dtype=np.uint8).tobytes()
        try:
            read_pickle(io.BytesIO(data), "noise")
        except InputError:
            continue


def test_reading_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    """400 MB are looked at, tensor by tensor, in a process of its own."""
    torch.save({f"w{i}": torch.zeros(1 << 20) for i in range(100)}, tmp_path / "large.ckpt")
    script = """
import sys, torch
from raygen.store.weight_file import open_weights
def anonymous():
    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('RssAnon'))
before = anonymous()
file = open_weights(sys.argv[1])
views = [entry.read() for entry in file.tensors.values()]
total = sum(float(view.sum()) for view in views)
print(anonymous() - before)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "large.ckpt")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert int(run.stdout) < 40_000, "kilobytes"


def _doubled(n: int) -> bytes:
    """A list of two times a list of two times …, n deep: 2 ** n values in a few bytes."""
    return b"]q\x000" + b"".join(b"](h" + bytes([i, 104, i]) + b"eq" + bytes([i + 1]) + b"0" for i in range(n))


NAMED = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nh\x28X\x03\x00\x00\x00cpuK\x02tQ."
GREEDY = {
    "a storage named by a tree": b"\x80\x02" + _doubled(40) + NAMED,
    "a name that is a tree": b"\x80\x04" + _doubled(40) + b"h\x28h\x28\x93.",
    "a key that is a number like all others": b"\x80\x02}" + pickle.dumps((1 << 61) - 1, 2)[2:-1] + b"K\x01s.",
    "copies of one set": (
        b"\x80\x02](" + b"K\x01" * 1000 + b"eq\x000](" + b"c__builtin__\nset\nh\x00\x85R" * 1000 + b"e."
    ),
    "nothing but opcodes": b"\x80\x02" + b"N0" * 50_001,
    "a shape of nothing that is huge": _tensor("K\x00J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87", "K\x01K\x01K\x01\x87"),
}


@pytest.mark.parametrize("name", GREEDY)
def test_a_small_file_cannot_ask_for_much(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr(
        "raygen.store.pickle_reader.MOST_OPCODES", 100_000
    )  # fifty times fewer: counting memory is slow
    (_in_zip if "shape" in name else _pickle)(GREEDY[name])(tmp_path / "evil.pkl")
    tracemalloc.start()
    with pytest.raises(InputError) as caught:
        open_weights(tmp_path / "evil.pkl")
    assert tracemalloc.get_traced_memory()[1] < 1 << 30
    tracemalloc.stop()
    assert caught.value.reason == "weights"
