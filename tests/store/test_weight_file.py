"""Ordinary checkpoints are read as people have them; what is no file of weights is named as what it is."""

import collections
import datetime
import functools
import gzip
import io
import json
import pathlib
import struct
import sys
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from raygen.core.errors import ConfigError, InputError
from raygen.store.pickle_reader import read_pickle
from raygen.store.weight_file import open_weights

W = torch.arange(6.0).view(2, 3)

#: What the standard library and torch leave beside weights: name -> value.
PLAIN: dict[str, Any] = {
    "counter": collections.Counter({3: 1, 5: 2}),  # milestones of torch's MultiStepLR
    "frozenset": frozenset({"a", "b"}),
    "nested sets": {"a": {1, 2}, "b": [frozenset({1}), {2}]},
    "deque": collections.deque([1.0, 2.0], maxlen=3),
    "moment": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "days": [datetime.date(2026, 1, 1), datetime.timedelta(hours=3), datetime.time(3)],
    "device": {"device": torch.device("cuda:0")},
    "numbers": [1 + 2j, range(3), slice(1, None), Fraction(1, 3), bytearray(b"x")],
    "types": [int, str, list, torch.float16, torch.complex64, torch.float8_e4m3fn],
    "namespace": types.SimpleNamespace(lr=0.1),
    "path": pathlib.PurePosixPath("a/b"),
    "scheduler": torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([torch.zeros(1)]), [3, 5]).state_dict(),
    "scalar": np.float64(0.1),
    "types of numpy": [np.float32, np.int64, np.bool_, np.str_("a"), np.dtype("f4")],
    "bound arguments": functools.partial(torch.nn.LayerNorm, eps=1e-6),
    "layers and functions": [torch.nn.GELU, torch.nn.functional.relu, torch.strided],
    "singletons": [Ellipsis, NotImplemented],
    "rotations": torch.ones(3, dtype=torch.complex64),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", PLAIN)
def test_values_beside_the_weights_are_passed_by(name: str, zipped: bool, tmp_path: Path) -> None:
    document = {"state_dict": {"w": W}, "beside": PLAIN[name]}
    torch.save(document, tmp_path / "m.ckpt", _use_new_zipfile_serialization=zipped)
    file = open_weights(tmp_path / "m.ckpt")
    assert torch.equal(file.tensors["w"].read(), W)
    assert set(file.beside) == {"beside"}


@contextmanager
def _module(name: str, **members: Any) -> Iterator[None]:
    """A module of that name while something of it is pickled."""
    names = [name[: i if i > 0 else len(name)] for i in [*(j for j, c in enumerate(name) if c == "."), 0]]
    assert names[0] not in sys.modules
    for part in names:
        sys.modules[part] = types.ModuleType(part)
    vars(sys.modules[name]).update(members)
    try:
        yield
    finally:
        for part in names:
            del sys.modules[part]


class _Settings(dict):  # type: ignore[type-arg]
    """A dictionary of settings that also has attributes, as configuration libraries have them."""


@pytest.mark.parametrize("protocol", [1, 2, 4])
@pytest.mark.parametrize(
    "name",
    [
        "easydict.EasyDict",
        "addict.addict.Dict",
        "yacs.config.CfgNode",
        "mmcv.utils.config.ConfigDict",
        "mmengine.config.config.ConfigDict",
        "ml_collections.config_dict.config_dict.ConfigDict",
        "omegaconf.listconfig.ListConfig",
        "munch.Munch",
    ],
)
def test_settings_beside_the_weights_are_passed_by(name: str, protocol: int, tmp_path: Path) -> None:
    module, _, kind = name.rpartition(".")
    made = type(kind, (_Settings,), {"__module__": module, "__qualname__": kind})
    with _module(module, **{kind: made}):
        settings = made(lr=0.1, inner=made(steps=[1, 2]))
        settings.frozen = True
        torch.save({"state_dict": {"w": W}, "cfg": settings}, tmp_path / "m.pth", pickle_protocol=protocol)
    file = open_weights(tmp_path / "m.pth")
    assert torch.equal(file.tensors["w"].read(), W)
    assert file.beside == {"cfg": name if protocol > 1 else "copy_reg._reconstructor"}


@pytest.mark.parametrize(
    "name",
    [
        "transformers.configuration_utils.PretrainedConfig",
        "diffusers.configuration_utils.FrozenDict",
        "torchvision.transforms.transforms.Compose",
        "torchmetrics.aggregation.MeanMetric",
    ],
)
def test_objects_of_libraries_become_stand_ins(name: str) -> None:
    module, _, kind = name.rpartition(".")
    assert read_pickle(io.BytesIO(f"\x80\x02c{module}\n{kind}\n.".encode("latin1")), "m.ckpt").name == name


def test_a_stand_in_for_settings_is_no_way_to_call_something(tmp_path: Path) -> None:
    """Names are data: a call, the state and the items of a stand-in give stand-ins, whatever they are named."""
    calls = b"\x80\x02}(X\x01\x00\x00\x00aceasydict.os\nsystem\nX\x08\x00\x00\x00touch it\x85R"
    calls += b"X\x01\x00\x00\x00bcdatetime\ndatetime\nX\x08\x00\x00\x00touch it\x85RX\x01\x00\x00\x00cK\x01u."
    (tmp_path / "m.pkl").write_bytes(calls)
    with pytest.raises(InputError, match="holds no tensors") as caught:
        open_weights(tmp_path / "m.pkl")
    assert caught.value.reason == "weights"
    for module, name in (
        ("builtins", "getattr"),
        ("collections", "namedtuple"),
        ("torch", "load"),
        ("copyreg", "_exit"),
    ):
        (tmp_path / "m.pkl").write_bytes(f"\x80\x02}}X\x01\x00\x00\x00ac{module}\n{name}\ns.".encode("latin1"))
        with pytest.raises(InputError, match=f"{module}.{name}") as caught:
            open_weights(tmp_path / "m.pkl")
        assert caught.value.reason == "unsafe"


def test_tensors_in_the_state_of_a_stand_in_do_not_hide_the_others(tmp_path: Path) -> None:
    """In torch's older format the places of storages follow from all of them."""
    document = {"window": collections.deque([torch.zeros(5)]), "state_dict": {"w": W}}
    torch.save(document, tmp_path / "m.ckpt", _use_new_zipfile_serialization=False)
    assert torch.equal(open_weights(tmp_path / "m.ckpt").tensors["w"].read(), W)


# --- where tensors are --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    ["state_dict", "model_state_dict", "model", "ema", "params_ema", "params", "net", "model.state_dict", "ema.module"],
)
def test_tensors_are_found_below_the_usual_names(place: str, tmp_path: Path) -> None:
    document: Any = {"w": W, "b": W}
    for name in reversed(place.split(".")):
        document = {name: document, "epoch": 3}
    torch.save(document, tmp_path / "m.pth")
    file = open_weights(tmp_path / "m.pth")
    assert set(file.tensors) == {"w", "b"}
    assert file.place == f"under {place!r}"
    assert file.beside["epoch"] == "3"
    assert file.averaged == ("ema" in place)


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        ("module.a.w", ["module."]),
        ("_orig_mod.a.w", ["_orig_mod."]),
        ("module._orig_mod.a.w", ["_orig_mod.", "module."]),
        ("_orig_mod.module.a.w", ["_orig_mod.", "module."]),
        ("a._orig_mod.w", ["_orig_mod."]),
        ("a.module.w", []),
    ],
)
def test_names_lose_what_wrappers_put_before_them(given: str, gone: list[str], tmp_path: Path) -> None:
    torch.save({given: W}, tmp_path / "m.pth")
    file = open_weights(tmp_path / "m.pth")
    assert list(file.tensors) == ["a.module.w" if not gone else "a.w"]
    assert file.place == ", ".join(f"names without {prefix!r}" for prefix in gone)


@pytest.mark.parametrize(
    ("given", "gone"),
    [
        (
            "_fsdp_wrapped_module.a._checkpoint_wrapped_module.w",
            ["_checkpoint_wrapped_module.", "_fsdp_wrapped_module."],
        ),
        ("_forward_module.a.w", ["_forward_module."]),
        ("module.module.a.w", ["module.", "module."]),
    ],
)
def test_names_lose_what_other_wrappers_put_before_them(given: str, gone: list[str], tmp_path: Path) -> None:
    torch.save({"model": {given: W}}, tmp_path / "m.pth")
    file = open_weights(tmp_path / "m.pth")
    assert list(file.tensors) == ["a.w"]
    assert file.place == ", ".join(["under 'model'", *(f"names without {prefix!r}" for prefix in gone)])


def test_counters_of_an_average_are_no_tensors_of_the_model(tmp_path: Path) -> None:
    """As torch's AveragedModel has them."""
    torch.save({"module.w": W, "n_averaged": torch.tensor(3)}, tmp_path / "m.pth")
    file = open_weights(tmp_path / "m.pth")
    assert (list(file.tensors), file.beside) == (["w"], {"n_averaged": "1 tensors"})


@pytest.mark.parametrize("name", ["state_dict_ema", "ema_state_dict"])
def test_an_average_below_other_names_is_taken(name: str, tmp_path: Path) -> None:
    """timm's is below `state_dict_ema`; mmengine's has a prefix and a counter that the last weights have not."""
    average = {"w": W + 1} if name == "state_dict_ema" else {"module.w": W + 1, "steps": torch.tensor(3)}
    torch.save({"state_dict": {"w": W}, name: average}, tmp_path / "m.pth")
    file = open_weights(tmp_path / "m.pth")
    assert file.averaged
    assert torch.equal(file.tensors["w"].read(), W + 1)
    assert torch.equal(open_weights(tmp_path / "m.pth", average=False).tensors["w"].read(), W)


def test_places_of_tensors_that_are_not_known_are_named(tmp_path: Path) -> None:
    torch.save({"netG": {"w": W}, "netD": {"w": W}, "epoch": 3}, tmp_path / "m.pth")
    with pytest.raises(InputError, match="but below 'netG', 'netD', of which none is a usual name: save a state_dict"):
        open_weights(tmp_path / "m.pth")


def test_a_prefix_that_not_all_names_have_is_part_of_them(tmp_path: Path) -> None:
    torch.save({"module.a": W, "b": W}, tmp_path / "m.pth")
    assert set(open_weights(tmp_path / "m.pth").tensors) == {"module.a", "b"}


def test_the_average_is_taken_unless_the_last_weights_are_asked_for(tmp_path: Path) -> None:
    torch.save({"params": {"w": W}, "params_ema": {"w": W + 1}}, tmp_path / "m.pth")
    assert torch.equal(open_weights(tmp_path / "m.pth").tensors["w"].read(), W + 1)
    assert torch.equal(open_weights(tmp_path / "m.pth", average=False).tensors["w"].read(), W)
    torch.save({"state_dict": {"w": W, "v": W}, "ema": {"w": W + 1}}, tmp_path / "part.pth")
    assert set(open_weights(tmp_path / "part.pth").tensors) == {"w", "v"}, "an average of a part is not the model"


def test_a_whole_module_is_named_as_one(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pth")
    with pytest.raises(InputError, match=r"a whole torch\.nn\.modules\.linear\.Linear object .* state_dict") as caught:
        open_weights(tmp_path / "m.pth")
    assert caught.value.reason == "weights"
    torch.save({"model": torch.nn.Linear(2, 2), "epoch": 3}, tmp_path / "m.pth")
    with pytest.raises(InputError, match="'model' is a whole torch"):
        open_weights(tmp_path / "m.pth")


# --- files that are something else --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.ckpt", "m.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "an empty file"),
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265380512\n",
            "a git-lfs pointer to a file of 4,265,380,512 bytes.*git lfs pull",
        ),
        ("<!DOCTYPE html><html><head><title>Virus scan warning</title>", "a web page"),
        ("\n  <HTML lang=en>", "a web page"),
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "a web page"),
        ('{"_class_name": "UNet2DModel", "act_fn": "silu"}', "a JSON document .keys _class_name, act_fn"),
    ],
)
def test_what_is_no_file_of_weights_is_named(name: str, content: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}: {what}") as caught:
        open_weights(tmp_path / name)
    assert caught.value.reason == "weights"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"404: Not Found", r"a text \('404: Not Found'\), perhaps a server's answer"),
        (b"Access to model x is restricted.", "a text .'Access to model x is restricted.'"),
        (b"<!-- saved -->\n<html>", "a web page"),
        (gzip.compress(b"x"), "a compressed file or archive: unpack it"),
        (bytes(257) + b"ustar" + bytes(300), r"an archive \(tar\): unpack it"),
        (b"\x08\x08\x12\x07pytorch\x1a\x051.9.0:" + bytes(80), "a graph of ONNX"),
        (b"\x89HDF\r\n\x1a\n" + bytes(80), "an HDF5 file"),
        (b"\x93NUMPY\x01\0" + bytes(80), "one array of numpy"),
        (b"\x89PNG\r\n\x1a\n" + bytes(80), "a picture"),
    ],
    ids=["404", "refusal", "html", "gzip", "tar", "onnx", "hdf5", "numpy", "png"],
)
def test_other_kinds_of_files_are_named(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(InputError, match=f"m.pth: {what}") as caught:
        open_weights(tmp_path / "m.pth")
    assert caught.value.reason == "weights"


def test_weights_in_a_zip_file_are_named(tmp_path: Path) -> None:
    """Latent diffusion's models are published so."""
    torch.save({"w": W}, tmp_path / "model.ckpt")
    with zipfile.ZipFile(tmp_path / "celeba.zip", "w") as archive:
        archive.write(tmp_path / "model.ckpt", "celeba/model.ckpt")
    with pytest.raises(InputError, match=r"a zip file that torch did not write; unpack it, and name celeba/model.ckpt"):
        open_weights(tmp_path / "celeba.zip")


@pytest.mark.parametrize("length", [0x8B1F, 0x120808])
def test_the_length_of_a_header_is_no_archive_or_graph(length: int, tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", length) + header + bytes(4))
    assert open_weights(tmp_path / "m.safetensors").tensors["w"].read().tolist() == [0.0]


@pytest.mark.parametrize("first", [b"{", b"[", b"<", b" ", b"\n"])
def test_the_length_of_a_header_is_no_text(first: bytes, tmp_path: Path) -> None:
    """safetensors begins with it: a header of 256 + 123 bytes begins as JSON does."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    header = header.ljust(256 + first[0])
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert (tmp_path / "m.safetensors").read_bytes()[:1] == first
    assert open_weights(tmp_path / "m.safetensors").tensors["w"].read().tolist() == [0.0]


def test_a_file_that_was_cut_off_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "m.ckpt")
    (tmp_path / "m.ckpt").write_bytes((tmp_path / "m.ckpt").read_bytes()[:700])
    with pytest.raises(InputError, match="it was cut off, fetch it again"):
        open_weights(tmp_path / "m.ckpt")


# --- several files ------------------------------------------------------------------------------------------


def _index(folder: Path, places: dict[str, str], name: str = "m.safetensors.index.json") -> Path:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder / name


def test_an_index_is_read_with_all_its_files(tmp_path: Path) -> None:
    save_file({"a": W}, tmp_path / "m-1.safetensors")
    torch.save({"b": W + 1}, tmp_path / "m-2.bin")
    index = _index(tmp_path, {"a": "m-1.safetensors", "b": "m-2.bin"})
    file = open_weights(index)
    assert torch.equal(file.tensors["b"].read(), W + 1)
    assert set(file.tensors) == {"a", "b"}
    assert file.size > (tmp_path / "m-2.bin").stat().st_size + (tmp_path / "m-1.safetensors").stat().st_size
    before = file.sha256
    torch.save({"b": W + 2}, tmp_path / "m-2.bin")
    assert open_weights(index).sha256 != before


@pytest.mark.parametrize(
    ("places", "problem"),
    [
        ({"a": "m-1.safetensors", "c": "m-1.safetensors"}, "lacks c, of the index"),
        ({"a": "../m-1.safetensors"}, "is no file beside it"),
        ({"a": "m.safetensors.index.json"}, "is no file beside it"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(places: dict[str, str], problem: str, tmp_path: Path) -> None:
    save_file({"a": W}, tmp_path / "m-1.safetensors")
    with pytest.raises(InputError, match=problem):
        open_weights(_index(tmp_path, places))
    with pytest.raises(ConfigError, match=r"m-9\.safetensors: weights cannot be read"):
        open_weights(_index(tmp_path, {"a": "m-9.safetensors"}))
    (tmp_path / "m.bin.index.json").write_text("[]")
    with pytest.raises(InputError, match="not an index of weights"):
        open_weights(tmp_path / "m.bin.index.json")
