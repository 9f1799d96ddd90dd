"""Rows of a finished FACES run by their id: the pictures that edits and styles refer to.

Knows where each face lies. Reads ids once, and a row only when it is asked for.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from raygen.spec import InputError
from raygen.storage import Slice, read_slice
from raygen.store import open_input

__all__ = ["FaceRows"]


class FaceRows:
    """FACES of `url`; holds their ids and places (about 200 bytes a face), never pictures."""

    def __init__(self, url: str, columns: Sequence[str]) -> None:
        self.url, self.columns = url, tuple(dict.fromkeys(("face_id", *columns)))
        self._places: dict[str, tuple[Slice, int]] | None = None

    def __call__(self, ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The rows of `ids`; `InputError` (`source`) names one that is not there."""
        places = self._index()
        found = {}
        for name in dict.fromkeys(ids):
            if name not in places:
                raise InputError(f"{self.url} has no face {name!r}", reason="source")
            piece, row = places[name]
            one = piece._replace(start=piece.start + row, rows=1)
            found[name] = read_slice(one, self.columns).to_pylist()[0]
        return found

    def _index(self) -> dict[str, tuple[Slice, int]]:
        if self._places is None:
            store, _ = open_input(self.url)
            self._places = {
                name: (piece, row)
                for piece in store.slices("faces")
                for row, name in enumerate(read_slice(piece, ["face_id"])["face_id"].to_pylist())
            }
        return self._places
