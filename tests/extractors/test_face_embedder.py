"""Face embedders: training a small one, and opening those that people bring."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from raygen.commands.registry import make
from raygen.core.config import parse
from raygen.core.errors import ConfigError, InputError
from raygen.extractors.bundled import BundledEmbedder, BundledParser, load_bundled, save_bundled
from raygen.extractors.config import BundledEmbedderConfig, FaceEmbedderConfig
from raygen.extractors.face_embedder import load_face_embedder
from raygen.training.config.losses import IdentityLoss
from raygen.training.losses import EmbedderObjective

CPU = torch.device("cpu")


def config(**what: object) -> FaceEmbedderConfig:
    return parse(FaceEmbedderConfig, what, "identity")


def projection(path: Path, side: int = 16, width: int = 5) -> np.ndarray:
    """An ONNX model: pixels [B, 3, side, side] -> flattened, times a matrix [3 side^2, width]."""
    matrix = np.random.default_rng(0).normal(size=(3 * side * side, width)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["y"])],
        "projection",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(matrix, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return matrix


def test_onnx_gives_what_the_model_says(tmp_path: Path) -> None:
    matrix = projection(tmp_path / "net.onnx")
    images = torch.randint(0, 256, (3, 16, 16, 3), dtype=torch.uint8)
    network = {"kind": "onnx", "weights": str(tmp_path / "net.onnx")}
    found = load_face_embedder(config(network=network, size=16), CPU)
    pixels = images.movedim(-1, 1).numpy() / 127.5 - 1
    wanted = pixels.reshape(3, -1) @ matrix
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    assert np.allclose(found.embed(images).numpy(), wanted, atol=1e-5)
    turned = load_face_embedder(config(network={**network, "channels": "bgr"}, size=16), CPU)
    other = pixels[:, ::-1].reshape(3, -1) @ matrix
    assert np.allclose(turned.embed(images).numpy(), other / np.linalg.norm(other, axis=1, keepdims=True), atol=1e-5)
    protocol = found.protocol()
    assert protocol["sha256"] == hashlib.sha256((tmp_path / "net.onnx").read_bytes()).hexdigest()
    assert protocol["network"] == "net"


def test_onnx_files_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    projection(tmp_path / "net.onnx")
    with pytest.raises(InputError, match="sha256 is"):
        load_face_embedder(
            config(network={"kind": "onnx", "weights": str(tmp_path / "net.onnx"), "sha256": "00000000"}), CPU
        )
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="no ONNX model"):
        load_face_embedder(config(network={"kind": "onnx", "weights": str(tmp_path / "bad.onnx")}), CPU)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_face_embedder(config(network={"kind": "onnx", "weights": str(tmp_path / "none.onnx")}), CPU)
    wrong = load_face_embedder(config(network={"kind": "onnx", "weights": str(tmp_path / "net.onnx")}, size=32), CPU)
    with pytest.raises(ConfigError, match="does not take pixels"):
        wrong.embed(torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


def test_an_onnx_model_reads_no_other_file(tmp_path: Path) -> None:
    projection(tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    secret = tmp_path / "secret.bin"
    apart = {"save_as_external_data": True, "location": secret.name, "size_threshold": 0}
    onnx.save_model(model, str(tmp_path / "out.onnx"), **apart)
    assert secret.exists()
    with pytest.raises(InputError, match="no ONNX model"):
        load_face_embedder(config(network={"kind": "onnx", "weights": str(tmp_path / "out.onnx")}, size=16), CPU)


def test_a_small_embedder_travels_in_its_folder(tmp_path: Path) -> None:
    network = BundledEmbedder(BundledEmbedderConfig(image_size=16, channels=(8, 8), width=4)).eval()
    save_bundled(network, tmp_path, weights="float32", extra={})
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    found = load_face_embedder(config(network={"kind": "small", "folder": str(tmp_path)}), CPU)
    wanted = network(images.movedim(-1, 1).float() / 127.5 - 1)
    assert torch.allclose(found.embed(images), wanted, atol=1e-6)
    assert torch.allclose(wanted.norm(dim=1), torch.ones(2))
    with pytest.raises(ConfigError, match="holds a embedder, not a parser"):
        load_bundled(tmp_path, BundledParser)
    with pytest.raises(ConfigError, match="16 px and nothing else"):
        load_face_embedder(config(network={"kind": "small", "folder": str(tmp_path)}, size=32), CPU)


def test_the_margin_makes_it_harder_and_centres_are_trained() -> None:
    torch.manual_seed(0)
    embedder = BundledEmbedder(BundledEmbedderConfig(image_size=16, channels=(8, 8), width=4))
    batch = {
        "images": torch.randint(0, 256, (6, 16, 16, 3), dtype=torch.uint8),
        "identity": torch.tensor([0, 1, 2, 0, 1, 2]),
        "noise": torch.zeros(6, 8, 1, 1),
    }
    easy = EmbedderObjective(embedder, IdentityLoss(identities=3, margin=0.0))
    hard = EmbedderObjective(embedder, IdentityLoss(identities=3, margin=0.4))
    hard.load_state_dict(easy.state_dict())
    losses = easy(batch), hard(batch)
    assert losses[0]["loss"] < losses[1]["loss"]
    vectors = embedder(batch["images"].movedim(-1, 1).float() / 127.5 - 1)
    cosines = vectors @ torch.nn.functional.normalize(easy.centres, dim=1).T
    wanted = torch.nn.functional.cross_entropy(24 * cosines, batch["identity"])
    assert losses[0]["loss"].item() == pytest.approx(wanted.item(), abs=0.3), "augmented a little"
    assert any(parameter is easy.centres for parameter in easy.phases()[0])


def test_training_tells_drawn_people_apart(tmp_path: Path) -> None:
    data = {"kind": "procedural", "identities": 12, "pictures": 6, "size": 32, "seed": 1, "val": 0, "test": 0}
    make({"kind": "ingest", "data": data, "out": f"{tmp_path}/faces"}).run(lambda _: None)
    what = {
        "faces": f"{tmp_path}/faces",
        "model": {"kind": "embedder", "image_size": 32, "channels": [8, 16, 16], "width": 16},
        "identity": {"identities": 12},
        "training": {"steps": 60, "batch": 24, "lr": 4e-3, "warmup": 5, "ema": 0.9, "seed": 1, "log_every": 10},
    }
    facts = make({"kind": "train", **what, "out": f"{tmp_path}/net"}).run(lambda _: None).facts
    assert facts["checkpoint"]
    lines = (tmp_path / "net/training/history.jsonl").read_text().splitlines()
    assert "accuracy" in lines[-1]
    score = {"parser": None, "features": None, "classifier": None}
    score["identity"] = {"network": {"kind": "small", "folder": f"{tmp_path}/net"}}
    judged = {"reference": f"{tmp_path}/faces", "score": score, "verification": {"far": [0.1]}}
    found = make({"kind": "evaluate", **judged, "out": f"{tmp_path}/judged"}).run(lambda _: None).facts
    assert found["eer:raygen-identity [reference]"] < 0.25, "of pictures that it was trained on; 0.5 is chance"


def test_people_have_to_be_counted(tmp_path: Path) -> None:
    data = {"kind": "procedural", "identities": 4, "pictures": 2, "size": 32, "seed": 1}
    make({"kind": "ingest", "data": data, "out": f"{tmp_path}/faces"}).run(lambda _: None)
    model = {"kind": "embedder", "image_size": 32, "channels": [8, 8]}
    what = {"faces": f"{tmp_path}/faces", "model": model, "training": {"steps": 1, "batch": 2}}
    with pytest.raises(ConfigError, match="an embedder needs `identity`"):
        make({"kind": "train", **what, "out": f"{tmp_path}/net"})
    job = {"kind": "train", **what, "identity": {"identities": 3}, "out": f"{tmp_path}/net"}
    with pytest.raises(ConfigError, match="has 4 people; set at least this number"):
        make(job).run(lambda _: None)
