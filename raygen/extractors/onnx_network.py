"""ONNX models of the user, run by onnxruntime from memory: a model cannot read other files of its folder."""

import hashlib
from pathlib import Path

import numpy as np

from raygen.core.errors import ConfigError, InputError
from raygen.core.types import Float32Array

__all__ = ["ONNXNetwork"]


class ONNXNetwork:
    """Pixels float32 [B, 3, H, W] -> the first output of a model, float32. Needs no torch."""

    def __init__(self, key: str, weights: str, sha256: str | None, channels: str, threads: int) -> None:
        """`key`: the setting with the network, for errors.

        `ConfigError` where onnxruntime or the file is missing, `InputError` (`weights`) where it is another file.
        """
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(f"{key}: kind onnx needs onnxruntime; install raygen[onnx]") from error
        path = Path(weights)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
        self.sha256, self.name, self.channels = hashlib.sha256(data).hexdigest(), path.stem, channels
        if sha256 is not None and not self.sha256.startswith(sha256.lower()):
            raise InputError(f"{path}: sha256 is {self.sha256}, not {sha256}", reason="weights")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # errors are raised, not printed
        try:
            self.session = onnxruntime.InferenceSession(data, options, providers=onnxruntime.get_available_providers())
        except Exception as error:
            raise InputError(f"{path}: no ONNX model ({type(error).__name__})", reason="weights") from error
        taken = self.session.get_inputs()[0]
        self.input = taken.name
        #: Many models are exported for one picture at a time.
        self.single = bool(taken.shape) and taken.shape[0] == 1

    def __call__(self, pixels: Float32Array) -> Float32Array:
        """RGB pixels in the values that the model takes; `ConfigError` where it does not take them."""
        array = np.ascontiguousarray(pixels if self.channels == "rgb" else pixels[:, ::-1], np.float32)
        parts = np.split(array, len(array)) if self.single and len(array) else [array]
        try:
            results = [self.session.run(None, {self.input: part})[0] for part in parts]
        except Exception as error:
            raise ConfigError(f"{self.name}: does not take pixels {list(array.shape)}: {str(error)[:200]}") from error
        return np.concatenate([np.asarray(result, np.float32) for result in results])
