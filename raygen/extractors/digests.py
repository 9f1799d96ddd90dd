"""Which network a config means: the sha256 of its weights, read without loading them."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from raygen.core.config import Config
from raygen.core.errors import ConfigError
from raygen.extractors.config import BundledNetworkConfig, MaskLandmarksConfig, PackageConfig
from raygen.extractors.packages import find_extractor
from raygen.store.fetched import local_folder

__all__ = ["TRANSFORMERS", "bundled_digest", "by_content", "checked_content", "network_digest", "pinned"]


NetworkT = TypeVar("NetworkT", bound=Config)
#: Weights that a library keeps in its own cache.
HUB: Final = "hub"
#: Weight files of a model folder of transformers, in order of preference.
TRANSFORMERS: Final = ("model.safetensors", "pytorch_model.bin")


def network_digest(config: Any, kind: str) -> str:
    """sha256 of the weights of a config of an extractor, without loading them.

    `kind`: the bundled network that `bundled` stands for, such as `parser`. Weights whose name only their loader can
    resolve (`hub`) are identified by their configured sha256 or by that name, and weights that only the workers see by
    their sha256. `ConfigError` for others that are not there, and as `find_extractor`.
    """
    if isinstance(config, BundledNetworkConfig):
        return bundled_digest(local_folder(config.folder, kind))
    if isinstance(config, PackageConfig):
        return find_extractor(config).extractor.sha256
    if hasattr(config, "weights"):
        named = Path(config.weights)
        path: Path | None = named / WEIGHTS if named.is_dir() else named  # a folder of `raygen import`
    else:
        folder = Path(local_folder(config.folder))
        path = next((candidate for name in TRANSFORMERS if (candidate := folder / name).is_file()), None)
    if path is None or not path.is_file():
        place = str(getattr(config, "weights", None) or config.folder)
        if config.sha256 is None and place != HUB:
            hint = getattr(config, "without", "")
            raise ConfigError(f"{place}: no weights of a network here; name the ones that you have{hint}")
        return str(config.sha256 or place)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def by_content(config: Config, kind: str) -> dict[str, Any]:
    """A config of a network as plans record it: the sha256 of its weights instead of their path.

    The same file at two paths is one network; another file at the same path is another network. `kind`: see
    `network_digest`.
    """
    settings = config.model_dump(mode="json", exclude={"folder", "weights"})
    if isinstance(config, MaskLandmarksConfig):
        return settings  # a mask needs no network
    return {**settings, "sha256": network_digest(config, kind)}


def checked_content(key: str, config: Config, kind: str) -> dict[str, Any]:
    """`by_content` of the setting `key`, before anything is written.

    `ConfigError` where a weight file is missing, or is not the one of `sha256`. With a whole `sha256` it may be
    missing on this machine: the workers, which read it, may have it.
    """
    weights, wanted = getattr(config, "weights", None), (getattr(config, "sha256", None) or "").lower()
    if weights is not None and not Path(weights).exists() and len(wanted) < 64:
        raise ConfigError(
            f"{key}.weights: {weights}: no such file; where only the workers have it, give its whole `sha256`"
        )
    content = by_content(config, kind)
    if weights is not None and Path(weights).exists() and not content["sha256"].startswith(wanted):
        raise ConfigError(f"{key}: {weights}: sha256 is {content['sha256']}, not {wanted}")
    return content


def pinned(config: NetworkT, content: Mapping[str, Any]) -> NetworkT:
    """`config` with the whole sha256 of its `by_content`: a worker whose file or package is another one refuses it."""
    sha256 = str(content.get("sha256"))
    if "sha256" not in type(config).model_fields or re.fullmatch("[0-9a-f]{64}", sha256) is None:
        return config
    return config.model_copy(update={"sha256": sha256})


WEIGHTS: Final = "model.safetensors"


def bundled_digest(folder: str | Path) -> str:
    """sha256 of the weights file; `ConfigError` where there is none."""
    try:
        return hashlib.sha256((Path(folder) / WEIGHTS).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{folder}: no trained network here ({WEIGHTS} is missing)") from error
