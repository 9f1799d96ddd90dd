"""What METRICS record of the bundled networks, read from their folders without torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raygen.core.assets import resolve
from raygen.core.errors import ConfigError, IntegrityError
from raygen.extractors.config import BundledNetworkConfig
from raygen.extractors.digests import bundled_digest
from raygen.store.sealed import open_record

__all__ = ["CLASSIFIER", "PARSER", "BundledProtocol", "bundled_protocol", "protocol_of"]


#: Names of the bundled networks in METRICS.
PARSER: Final = "raygen-parser"
CLASSIFIER: Final = "raygen-attributes"


def protocol_of(name: str, sha256: str, image_size: int) -> dict[str, Any]:
    """The settings that numbers of a bundled network depend on."""
    return {"network": name, "sha256": sha256, "input": f"{image_size} px bilinear antialias", "precision": "fp32"}


@dataclass(frozen=True)
class BundledProtocol:
    """A bundled network that is not loaded: its name, the name of a Fréchet distance over it, and its protocol."""

    name: str
    sha256: str
    image_size: int

    @property
    def metric(self) -> str:
        """Name of a Fréchet distance over its features."""
        return f"fd:{self.name}"

    def protocol(self) -> Mapping[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        return protocol_of(self.name, self.sha256, self.image_size)


def bundled_protocol(config: BundledNetworkConfig, name: str) -> BundledProtocol:
    """The network `PARSER` or `CLASSIFIER` of a config.

    `ConfigError` where there is none; a network that does not load is told by the workers, which load it.
    """
    folder = Path(resolve(config.folder, "parser" if name == PARSER else "classifier"))
    sha256 = bundled_digest(folder)
    path = folder / "config.json"
    try:
        size = int(open_record(path.read_bytes(), str(path))["network"]["image_size"])
    except (OSError, IntegrityError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    return BundledProtocol(name, sha256, size)
