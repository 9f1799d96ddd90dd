"""Licences of networks, as far as they are known, for data cards."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["BUNDLED_MODEL", "licence_of", "network_rows"]


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


def network_rows(
    settings: Mapping[str, Any], scores: Sequence[Mapping[str, Any]], licences: Mapping[str, str]
) -> list[str]:
    """Lines of a Markdown table: the networks that selected, parsed or measured pictures, with their licences.

    `settings`: of the plan of the pictures. `scores`: METRICS rows, whose protocol may state a licence.
    """
    lines = [
        f"| {network} | selected them | {licence_of(network, licences)} |"
        for network in settings.get("judged_by") or ()
    ]
    for key, made in (("parser", "made the masks"), ("landmarks", "found the landmarks")):
        used = settings.get(key)
        if isinstance(used, Mapping) and used.get("sha256"):
            sha = str(used["sha256"])
            name = "raygen-parser" if used["kind"] == "small" else str(used.get("name") or used["kind"])
            lines.append(f"| {name} `{sha[:12]}` | {made} | {_by_sha_or_name(sha, name, licences)} |")
    networks: dict[str, tuple[str, str]] = {}
    for row in scores:
        protocol = json.loads(row["protocol"] or "{}")
        if protocol.get("network"):
            known = str(protocol.get("sha256", "")), str(protocol.get("licence", UNKNOWN))
            networks.setdefault(str(protocol["network"]), known)
    for network, (sha, stated) in sorted(networks.items()):
        licence = _by_sha_or_name(sha, network, licences)
        lines.append(f"| {network} | measured them | {stated if licence == UNKNOWN else licence} |")
    return lines


def _by_sha_or_name(sha: str, name: str, licences: Mapping[str, str]) -> str:
    """The licence of a network by its sha256 where the job names that, else by its name."""
    by_sha = any(sha.startswith(known) for known in licences) if sha else False
    return licence_of(sha if by_sha else name, licences)
