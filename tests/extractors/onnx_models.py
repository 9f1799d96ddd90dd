"""ONNX models for tests, of a few nodes."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def save(
    path: Path,
    nodes: list,
    constants: dict[str, np.ndarray],
    side: int,
    output: list[int | str],
    batch: int | str = "n",
) -> str:
    """A model of `nodes` from the input `x` [batch, 3, side, side] to the output `y`; its path."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return str(path)


def classes_by_colour(path: Path, matrix: np.ndarray, side: int, batch: int | str = "n") -> str:
    """Logits [n, 19, side, side]: `matrix` [19, 3] times the colour of each pixel."""
    convolution = helper.make_node("Conv", ["x", "w"], ["y"])
    weights = {"w": matrix.astype(np.float32)[..., None, None]}
    return save(path, [convolution], weights, side, [batch, 19, side, side], batch)


def constant_points(path: Path, points: np.ndarray, side: int) -> str:
    """The output [1, k], whatever the picture is."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["p", "nothing"], ["y"]),
    ]
    values = {"p": points.astype(np.float32).reshape(1, -1), "zero": np.float32(0).reshape(())}
    return save(path, nodes, values, side, [1, points.size])
