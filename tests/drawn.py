"""Drawn faces and the rows that ask for pictures of them: what most tests of a whole job begin with."""

from pathlib import Path

from raygen.commands.registry import make


def quiet(_: object) -> None:
    """Nobody listens to progress."""


def drawn(root: Path, identities: int, pictures: int = 1) -> Path:
    """`root` with `faces` (64 px, seed 3) and `rows`, their conditions."""
    data = {"kind": "procedural", "identities": identities, "pictures": pictures, "size": 64, "seed": 3}
    make({"kind": "ingest", "data": data, "out": f"{root}/faces"}).run(quiet)
    planning = {"kind": "from_faces"}
    make({"kind": "plan", "faces": f"{root}/faces", "planning": planning, "out": f"{root}/rows"}).run(quiet)
    return root
