"""Networks that installed packages offer: the entry-point group `raygen.extractors`.

    [project.entry-points."raygen.extractors"]
    my-parser = "my_package.faces:MyParser"

An entry point names a class, or a function without arguments, that gives an `Extractor`. Making one is cheap: its
weights are read by `load`, in the workers, and its sha256 is known before. Nothing here imports torch.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Literal, Protocol, get_args

import numpy as np

from raygen.core.config import nearest
from raygen.core.errors import ConfigError
from raygen.core.types import AnyArray, Float32Array
from raygen.extractors.config import PackageConfig, PackageKind

__all__ = ["GROUP", "Extractor", "Network", "Offer", "find_extractor", "offer_of", "offered"]


#: The entry-point group.
GROUP: Final = "raygen.extractors"


class Network(Protocol):
    """A loaded network."""

    def __call__(self, pixels: Float32Array) -> AnyArray:
        """Pixels float32 [B, 3, H, W] -> an array, by the kind of the extractor.

        - embedder: vectors [B, D]. A vector with NaN says that there is no face; the row gets no vector.
        - parser: logits [B, 19, h, w] of any size.
        - landmarker: points [B, 5, 2], x and y as fractions of the sides: the eyes, the tip of the nose, the corners
          of the mouth, left before right as they lie in the picture. NaN where there is no face.
        - scorer: numbers [B]; NaN where there is none.
        """
        ...


class Extractor(Protocol):
    """What an entry point gives: a network that is not loaded yet, and what it expects.

    A parser whose 19 classes are in the order of face-parsing.PyTorch also has `labels = "face_parsing"`.
    """

    @property
    def kind(self) -> PackageKind:
        """What it does, and with that the meaning of its output; see `Network`."""
        ...

    @property
    def sha256(self) -> str:
        """The 64 hexadecimal digits of its weights; it enters the identity of runs. Known without reading them."""
        ...

    @property
    def licence(self) -> str:
        """The licence of its weights, such as `MIT` or `CC-BY-NC-4.0`; protocols of METRICS name it."""
        ...

    @property
    def input_size(self) -> int | None:
        """Side of the square pixels that it takes; None takes pictures as they are stored."""
        ...

    @property
    def channels(self) -> Literal["rgb", "bgr"]:
        """Order of the colour channels that it takes."""
        ...

    @property
    def value_range(self) -> tuple[float, float]:
        """Values of black and white, such as (0, 255)."""
        ...

    def load(self, device: str) -> Network:
        """The network with its weights on a device of torch, `cpu` or `cuda`. Called once in each worker."""
        ...


@dataclass(frozen=True)
class Offer:
    """An extractor with its name, and the package and version that it is from."""

    name: str
    extractor: Extractor
    package: str

    def protocol(self) -> dict[str, Any]:
        """The settings that its numbers depend on, for METRICS."""
        own = self.extractor
        size = "stored size" if own.input_size is None else f"{own.input_size} px bilinear antialias"
        low, high = own.value_range
        return {
            "network": self.name,
            "sha256": own.sha256,
            "package": self.package,
            "licence": own.licence,
            "input": f"{size}, {own.channels}, {low:g}..{high:g}",
            "precision": "fp32",
        }


def offered() -> Mapping[str, tuple[EntryPoint, ...]]:
    """The entry points of installed packages by name; more than one where packages use the same name."""
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return found


def offer_of(name: str, what: str = "network") -> Offer:
    """The extractor of a name, not loaded. `what`: how errors call it.

    `ConfigError` where no package offers that name, or several do, and where the package cannot be imported or breaks
    the protocol.
    """
    known = offered()
    entries = known.get(name, ())
    if not entries:
        there = ", ".join(sorted(known)) or "no package offers any"
        hint = nearest(name, known) or f" (offered: {there})"
        raise ConfigError(f"{what} {name!r}: no installed package offers it in {GROUP}{hint}")
    if len(entries) > 1:
        packages = " and ".join(sorted(_package(entry) for entry in entries))
        raise ConfigError(f"{what} {name!r}: {packages} both offer it; uninstall one of them")
    return _made(entries[0])


def find_extractor(config: PackageConfig) -> Offer:
    """The extractor of a config, not loaded.

    `ConfigError` as `offer_of`, and where it is of another kind or has another sha256.
    """
    offer = offer_of(config.name, config.offers)
    own = offer.extractor
    if own.kind != config.offers:
        raise ConfigError(
            f"{config.name!r} of {offer.package} is of kind {own.kind}, and {config.offers} is needed here"
        )
    if config.sha256 is not None and not own.sha256.startswith(config.sha256.lower()):
        raise ConfigError(f"{config.name!r} of {offer.package}: sha256 is {own.sha256}, not {config.sha256}")
    return offer


def _package(entry: EntryPoint) -> str:
    """Name and version of the package of an entry point."""
    return "a package without a name" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"


@cache  # an extractor may compute its sha256, and settings are asked for it several times
def _made(entry: EntryPoint) -> Offer:
    """The extractor of an entry point, checked; see `find_extractor`."""
    package = _package(entry)
    where = f"{entry.name!r} of {package}"
    try:
        extractor = entry.load()()
    except (Exception, SystemExit) as error:  # whatever the code of a package raises
        raise ConfigError(f"{where}: {entry.value} cannot be made ({type(error).__name__}: {error})") from error
    try:
        problem = _problem(extractor)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        raise ConfigError(f"{where}: {entry.value} is not an extractor: {problem}; see raygen.extractors.packages")
    return Offer(entry.name, extractor, package)


def _problem(extractor: Any) -> str | None:
    """How an object breaks the protocol `Extractor`; None where it does not."""
    for name in ("kind", "sha256", "licence", "input_size", "channels", "value_range", "load"):
        if not hasattr(extractor, name):
            return f"it has no {name}"
    (low, high), size, digits = extractor.value_range, extractor.input_size, extractor.sha256
    checks = {
        f"kind must be one of {', '.join(get_args(PackageKind))}": extractor.kind in get_args(PackageKind),
        "sha256 must be 64 hexadecimal digits in lower case": re.fullmatch("[0-9a-f]{64}", digits) is not None,
        "licence must be a text": isinstance(extractor.licence, str) and bool(extractor.licence.strip()),
        "input_size must be a number of pixels, or None": size is None or (isinstance(size, int) and size > 0),
        "channels must be rgb or bgr": extractor.channels in ("rgb", "bgr"),
        "value_range must be a lower and a higher number": bool(np.isfinite([low, high]).all() and low < high),
        "load must be a method": callable(extractor.load),
        "labels must be celebamask or face_parsing": getattr(extractor, "labels", "celebamask")
        in ("celebamask", "face_parsing"),
    }
    return next((text for text, holds in checks.items() if not holds), None)
