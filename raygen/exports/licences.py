"""Under which licence the networks behind a data set are, as far as anybody said.

Knows the bundled networks, which are this project's own, and what the publishers of the usual measuring networks say.
Whatever is not listed here or named by the user is called unknown.
"""

from collections.abc import Mapping
from typing import Final

__all__ = ["BUNDLED_MODEL", "licence_of"]

#: sha256 of the bundled model, as `raygen.models.checkpoint.digest` takes it.
BUNDLED_MODEL: Final = "3521654bad3e046f2ec4c4bef91825119de7e0472faa076483ff131417c07c41"
_OWN: Final = "Apache-2.0, this project's own; trained on faces that a program drew, on no photograph"
UNKNOWN: Final = "unknown: the job names none; find out before passing pictures or numbers on"
#: By the beginning of the network's name.
_KNOWN: Final[Mapping[str, str]] = {
    BUNDLED_MODEL: _OWN,
    "raygen-parser": f"{_OWN} (the bundled parser; another one of its kind has the licence of whoever trained it)",
    "raygen-attributes": f"{_OWN} (the bundled classifier; another one has the licence of whoever trained it)",
    "raygen-identity": f"{_OWN} (the bundled embedder; another one of its kind has the licence of whoever trained it)",
    "parsenet": "published with CelebAMask-HQ, whose terms allow non-commercial research only",
    "bisenet": "code MIT (face-parsing.PyTorch); weights trained on CelebAMask-HQ, non-commercial research only",
    "inception-2015": "weights published by Google with TensorFlow (Apache-2.0); trained on ImageNet",
    "lpips": "code and linear weights BSD-2-Clause; its trunk (AlexNet or VGG-16) was trained on ImageNet",
}


def licence_of(network: str, said: Mapping[str, str]) -> str:
    """What the job says of `network` (its name, sha256, or how they begin), else what is known of it."""
    for table in (said, _KNOWN):
        for name in sorted(table, key=len, reverse=True):
            if network.startswith(name):
                return table[name]
    return UNKNOWN
