"""Latents of a first stage as rows: what was encoded, mirrored ones beside, bad pictures with their error."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from raygen.core.pixels import to_pixels
from raygen.models import checkpoint
from raygen.models.autoencoder import FirstStage
from raygen.models.config.autoencoder import AutoencoderConfig
from raygen.sampling.config import EncodeConfig
from raygen.sampling.encode import LATENTS_OR_ERROR, EncodeWorker
from raygen.store.images import encode_image, picture
from raygen.store.schemas import FACES


def test_rows(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stage = FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8)))
    digest = checkpoint.save(stage, tmp_path / "ae")
    random = np.random.default_rng(0)
    pictures = random.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    data = [encode_image(p) for p in pictures]
    data.insert(1, data[0][:30])
    rows = [{"face_id": f"f{i}", "split": "train", "image": picture(d)} for i, d in enumerate(data)]
    worker = EncodeWorker(EncodeConfig(checkpoint=str(tmp_path / "ae"), device="cpu"))
    table = worker(pa.Table.from_pylist(rows, FACES))["latents"]
    assert table.schema.equals(LATENTS_OR_ERROR)
    assert table["face_id"].to_pylist() == ["f0", "f1", "f2", "f3"] * 2
    assert table["transform"].to_pylist() == ["none"] * 4 + ["flip"] * 4
    assert set(table["autoencoder"].to_pylist()) == {digest}
    errors = table["error"].to_pylist()
    assert [e is not None for e in errors] == [False, True, False, False] * 2
    assert table["moments"][1].as_py() is None
    with torch.no_grad():
        expected = stage.encode(to_pixels(torch.from_numpy(pictures)).flip(-1))
    for row, want in zip((4, 6, 7), expected, strict=True):
        found = np.array(table["moments"][row].as_py(), np.float32).reshape(table["shape"][row].as_py())
        np.testing.assert_allclose(found, want.numpy(), atol=5e-3, rtol=2e-3)


def test_encoding_in_half_precision_is_close_and_says_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    checkpoint.save(FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8))), tmp_path / "ae")
    random = np.random.default_rng(0)
    pictures = [picture(encode_image(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))) for _ in range(3)]
    rows = pa.Table.from_pylist([{"face_id": "f", "split": "train", "image": image} for image in pictures], FACES)
    made = {}
    for precision in ("float32", "bfloat16"):
        worker = EncodeWorker(EncodeConfig(checkpoint=str(tmp_path / "ae"), precision=precision, device="cpu"))
        made[precision] = np.array(worker(rows)["latents"]["moments"].to_pylist(), np.float32)
        assert worker.environment()["precision"] == precision
        assert worker.environment()["tf32"] == "off"
    assert not np.array_equal(made["float32"], made["bfloat16"])
    np.testing.assert_allclose(made["bfloat16"], made["float32"], atol=0.1, rtol=0.05)


def test_without_flips(tmp_path: Path) -> None:
    checkpoint.save(FirstStage(AutoencoderConfig(image_size=16, channels=(8, 8))), tmp_path / "ae")
    worker = EncodeWorker(EncodeConfig(checkpoint=str(tmp_path / "ae"), horizontal_flips=False, device="cpu"))
    row = {"face_id": "f", "split": "train", "image": picture(encode_image(np.zeros((16, 16, 3), np.uint8)))}
    assert worker(pa.Table.from_pylist([row], FACES))["latents"]["transform"].to_pylist() == ["none"]
