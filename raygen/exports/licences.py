"""Licences of networks, as far as they are known, for data cards."""

from collections.abc import Mapping
from typing import Final

__all__ = ["BUNDLED_MODEL", "licence_of"]


#: sha256 of the bundled model, as `raygen.models.checkpoint_folder.digest` takes it.
BUNDLED_MODEL: Final = "3521654bad3e046f2ec4c4bef91825119de7e0472faa076483ff131417c07c41"
_OWN: Final = "Apache-2.0, by this project; trained on drawn faces, not on photographs"
UNKNOWN: Final = "unknown: the job names none; find out before you publish pictures or numbers"
#: Licences by the beginning of the name of the network.
_KNOWN: Final[Mapping[str, str]] = {
    BUNDLED_MODEL: _OWN,
    "raygen-parser": f"{_OWN} (the bundled parser; another one has its own licence)",
    "raygen-attributes": f"{_OWN} (the bundled classifier; another one has its own licence)",
    "raygen-identity": f"{_OWN} (the bundled embedder; another one has its own licence)",
    "parsenet": "published with CelebAMask-HQ, whose terms allow non-commercial research only",
    "bisenet": "code MIT (face-parsing.PyTorch); weights trained on CelebAMask-HQ, non-commercial research only",
    "inception-2015": "weights published by Google with TensorFlow (Apache-2.0); trained on ImageNet",
    "lpips": "code and linear weights BSD-2-Clause; its trunk (AlexNet or VGG-16) was trained on ImageNet",
}


def licence_of(network: str, licences: Mapping[str, str]) -> str:
    """The licence of `network`, given by its name or sha256: that of `licences`, else a known one, else `UNKNOWN`.

    Keys of `licences` are the beginning of a name or sha256; the longest match is used.
    """
    for table in (licences, _KNOWN):
        for name in sorted(table, key=len, reverse=True):
            if network.startswith(name):
                return table[name]
    return UNKNOWN
