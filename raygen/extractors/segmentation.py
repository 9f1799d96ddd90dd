"""What all face parsers share: class ids and confidence from logits; parsers of the user as ONNX files and packages."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raygen.core.errors import ConfigError
from raygen.core.face_labels import CLASSES, FACE_PARSING_TO_OFFICIAL
from raygen.core.precision import full_precision
from raygen.extractors.config import ONNXParserConfig, PackageParserConfig
from raygen.extractors.onnx_network import ONNXNetwork
from raygen.extractors.package_network import PackageNetwork
from raygen.store.class_ids import LabelOrder

__all__ = ["LogitParser", "ONNXParser", "PackageParser"]


#: Pictures a pass: logits of one take 20 MB at 512 px.
CHUNK: Final = 8


class LogitParser:
    """A `Parser` by its logits. Subclasses set `name`, `sha256`, `label_order` and write `logits`."""

    name: str
    sha256: str
    #: Pictures a pass; None for all at once.
    chunk: int | None = CHUNK
    #: The order of the classes in the logits.
    label_order: LabelOrder = "celebamask"

    def logits(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] -> logits [B, 19, h, w] of any size."""
        raise NotImplementedError

    @torch.inference_mode()
    def parse(self, images: Tensor) -> Tensor:
        """See `Parser.parse`; logits are resized to the picture before the best class is taken."""
        return torch.cat([self._ids(logits) for logits in self._parts(images)])

    @torch.inference_mode()
    def segment(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See `Parser.segment`."""
        ids, confidence = [], []
        for logits in self._parts(images):
            ids.append(self._ids(logits))
            largest = logits.float().amax(dim=1) - logits.float().logsumexp(dim=1)  # of a softmax, as a logarithm
            confidence.append(largest.exp().mean(dim=(1, 2)).cpu())
        return torch.cat(ids), torch.cat(confidence)

    def _parts(self, images: Tensor) -> Iterator[Tensor]:
        """Logits at the size of the pictures, `chunk` pictures at once."""
        for part in torch.split(images, self.chunk or max(len(images), 1)):
            with full_precision():
                logits = self.logits(part)
                if logits.shape[-2:] != part.shape[1:3]:
                    logits = F.interpolate(logits, part.shape[1:3], mode="bilinear")
            yield logits

    def _ids(self, logits: Tensor) -> Tensor:
        best = logits.argmax(dim=1).to(torch.uint8).cpu()
        return best if self.label_order == "celebamask" else torch.from_numpy(FACE_PARSING_TO_OFFICIAL)[best.long()]


class ONNXParser(LogitParser):
    """A parser in an ONNX file."""

    def __init__(self, config: ONNXParserConfig) -> None:
        self.config, self.label_order = config, config.labels
        self.network = ONNXNetwork("parser", config.weights, config.sha256, config.channels, torch.get_num_threads())
        self.name, self.sha256 = self.network.name, self.network.sha256

    def logits(self, images: Tensor) -> Tensor:
        """See `LogitParser.logits`; `ConfigError` where the model gives anything else."""
        size = (self.config.size, self.config.size)
        x = F.interpolate(images.movedim(-1, 1).float(), size, mode="bilinear", antialias=True).cpu() / 255
        mean, std = (x.new_tensor(values).view(3, 1, 1) for values in (self.config.mean, self.config.std))
        result = self.network(((x - mean) / std).numpy())
        if result.ndim != 4 or result.shape[:2] != (len(images), len(CLASSES)):
            raise ConfigError(
                f"parser: {self.name} gave an array {list(result.shape)} of {len(images)} pictures, and a parser gives "
                f"logits [{len(images)}, {len(CLASSES)}, height, width] as its first output"
            )
        return torch.from_numpy(result)

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        own = self.config
        size = f"{own.size} px bilinear antialias, {own.channels}, mean {list(own.mean)}, std {list(own.std)}"
        return {**_protocol(self.name, self.sha256, self.label_order), "input": size}


class PackageParser(LogitParser):
    """A parser of an installed package."""

    def __init__(self, config: PackageParserConfig, device: torch.device) -> None:
        self.network = PackageNetwork(config, device)
        self.name, self.sha256 = self.network.name, self.network.sha256
        self.label_order = getattr(self.network.offer.extractor, "labels", "celebamask")

    def logits(self, images: Tensor) -> Tensor:
        """See `LogitParser.logits`."""
        return torch.from_numpy(self.network(images, (len(CLASSES), None, None)).astype(np.float32))

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        return {**_protocol(self.name, self.sha256, self.label_order), **self.network.offer.protocol()}


def _protocol(name: str, sha256: str, order: LabelOrder) -> dict[str, Any]:
    return {
        "network": name,
        "sha256": sha256,
        "labels": "logits, bilinear to picture size, then the best class",
        "label_order": "official" if order == "celebamask" else "face-parsing.PyTorch, remapped to official",
        "precision": "fp32",
    }
