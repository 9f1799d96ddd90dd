"""Parsers of the user in ONNX files."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raygen.core.config import parse
from raygen.core.errors import ConfigError
from raygen.core.face_labels import CLASS_INDEX, FACE_PARSING_CLASSES
from raygen.extractors.base import load_parser
from raygen.extractors.config import ONNXParserConfig
from tests.extractors.onnx_models import classes_by_colour, constant_points

CPU = torch.device("cpu")


def test_a_parser_in_a_file_gives_classes_by_its_order_and_preparation(tmp_path: Path) -> None:
    """Red wins for the eleventh class, blue for the eighteenth; both orders of colours and of classes."""
    matrix = np.zeros((19, 3))
    matrix[10], matrix[17] = (4, 0, 0), (0, 0, 4)
    weights = classes_by_colour(tmp_path / "parser.onnx", matrix, 16)
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    image[:, :, :16, 0], image[:, :, 16:, 2] = 255, 255

    def labels(**settings: object) -> list[int]:
        config = parse(ONNXParserConfig, {"weights": weights, "size": 16, **settings}, "parser")
        ids = load_parser(config, CPU).parse(image)[0]
        assert ids.shape == (32, 32)
        return [int(ids[16, 4]), int(ids[16, 28])]

    assert labels(labels="celebamask") == [10, 17]
    named = [CLASS_INDEX[FACE_PARSING_CLASSES[i]] for i in (10, 17)]
    assert labels(labels="face_parsing") == named
    assert labels(labels="celebamask", channels="bgr") == [17, 10]
    assert labels(labels="celebamask", mean=[9, 0, 0], std=[1, 1, 1]) == [0, 17], "red is below zero"
    config = parse(ONNXParserConfig, {"weights": weights, "size": 16, "labels": "celebamask"}, "parser")
    parser = load_parser(config, CPU)
    ids, confidence = parser.segment(image)
    assert ids.unique().tolist() == [10, 17]
    assert 0.5 < confidence.item() < 1
    assert parser.protocol()["input"] == (
        "16 px bilinear antialias, rgb, mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]"
    ), "METRICS of other preparations are not alike"


def test_a_model_for_one_picture_at_a_time_is_given_one(tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(19, 3))
    images = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    found = []
    for batch in ("n", 1):
        weights = classes_by_colour(tmp_path / f"{batch}.onnx", matrix, 16, batch)
        found.append(load_parser(ONNXParserConfig(weights=weights, labels="celebamask", size=16), CPU).parse(images))
    assert torch.equal(*found)
    assert len(found[0].unique()) > 3


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"size": 16}, "labels: Field required"),
        ({"labels": "celebamask", "std": [0, 1, 1]}, "std above 0"),
    ],
)
def test_settings_that_would_be_guesses_are_refused(settings: dict, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        parse(ONNXParserConfig, {"weights": "parser.onnx", **settings}, "parser")


def test_a_model_that_gives_no_logits_is_told(tmp_path: Path) -> None:
    weights = constant_points(tmp_path / "points.onnx", np.zeros(10), 16)
    config = ONNXParserConfig(weights=weights, labels="celebamask", size=16)
    with pytest.raises(ConfigError, match=r"parser: points gave an array \[1, 10\] of 1 pictures, .* \[1, 19, height"):
        load_parser(config, CPU).parse(torch.zeros(1, 16, 16, 3, dtype=torch.uint8))
