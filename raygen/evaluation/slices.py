"""Parts of a set of scored rows: by attribute, by class in the mask, by identity; and every number of each part.

Knows how rows are told apart. Does not know what is measured of them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from raygen.core.config import nearest
from raygen.core.face_labels import ATTRIBUTES, CLASSES
from raygen.evaluation.aggregate import ScoreMatrix
from raygen.evaluation.feature_metrics import Grouping
from raygen.metrics.attributes import UNWANTED, WANTED
from raygen.metrics.segmentation import Counts
from raygen.store.run_store import RunStore

__all__ = ["by_slices", "check_slices", "column", "grouping_of", "select_ids", "slice_rows"]


IDENTITY: Final = "identity"


def check_slices(names: Iterable[str]) -> None:
    """`ValueError` names the nearest known word for one that is neither an attribute nor a class nor `identity`."""
    known = (*ATTRIBUTES, *CLASSES, IDENTITY)
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is no attribute, no class and not {IDENTITY!r}{nearest(name, known)}")


def slice_rows(
    names: Sequence[str], scores: Mapping[str, ScoreMatrix], identities: Mapping[str, str]
) -> Iterator[tuple[str, frozenset[str]]]:
    """Name of each part and the ids of its rows: `Male: yes`, `Male: no`, `hat: there`, `identity: p0003`.

    Attributes are those that were asked for, classes those of the wanted mask, so a part depends on conditions and
    never on what came out. Rows that do not say are in no part; a part without rows is left out.
    """
    for name in names:
        for label, ids in _parts(name, scores, identities):
            if ids:
                yield f"{name}: {label}", frozenset(ids)


def _parts(
    name: str, scores: Mapping[str, ScoreMatrix], identities: Mapping[str, str]
) -> Iterator[tuple[str, Iterable[str]]]:
    if name == IDENTITY:
        for identity in sorted(set(identities.values())):
            yield identity, [one for one, whose in identities.items() if whose == identity]
    elif name in CLASSES:
        found = _first(scores, "segmentation:")
        if found is not None:
            there = Counts.from_vectors(found.vectors).wanted[:, CLASSES.index(name)] > 0
            yield "there", _chosen(found, there)
            yield "not there", _chosen(found, ~there)
    else:
        found = _first(scores, "attributes:")
        if found is not None:
            codes = found.vectors[:, ATTRIBUTES.index(name)]
            yield "yes", _chosen(found, np.isin(codes, WANTED))
            yield "no", _chosen(found, np.isin(codes, UNWANTED))


def _first(scores: Mapping[str, ScoreMatrix], kind: str) -> ScoreMatrix | None:
    return next((found for name, found in scores.items() if name.startswith(kind)), None)


def _chosen(found: ScoreMatrix, which: Iterable[bool]) -> list[str]:
    return [one for one, chosen in zip(found.ids, which, strict=True) if chosen]


def select_ids(scores: Mapping[str, ScoreMatrix], ids: frozenset[str]) -> dict[str, ScoreMatrix]:
    """The rows of `ids`, of each measurement that has any."""
    result = {}
    for name, found in scores.items():
        keep = [i for i, one in enumerate(found.ids) if one in ids]
        if keep:
            result[name] = ScoreMatrix(tuple(found.ids[i] for i in keep), found.vectors[keep])
    return result


def by_slices(
    names: Sequence[str],
    sets: Mapping[str, Mapping[str, ScoreMatrix]],
    identities: Mapping[str, str],
    finish: Callable[[Mapping[str, Mapping[str, ScoreMatrix]]], pa.Table],
) -> Iterator[pa.Table]:
    """METRICS of each part of what is judged, against the same part of the reference where that says so too."""
    real, made = sets.get("reference", {}), sets.get("all", {})
    theirs = dict(slice_rows(names, real, {}))
    for label, ids in slice_rows(names, made, identities):
        parts = {label: select_ids(made, ids)}
        if label in theirs:
            parts["reference"] = select_ids(real, theirs[label])
        table = finish(parts)
        yield table.filter(pa.array([name.partition("/")[0] == label for name in table["slice"].to_pylist()]))


def column(store: RunStore, table: str, key: str, name: str) -> dict[str, str]:
    """A small column of a run by its key; rows without a value are left out."""
    found: dict[str, str] = {}
    for part in store.tables(table, [key, name]):
        rows = zip(part[key].to_pylist(), part[name].to_pylist(), strict=True)
        found |= {one: value for one, value in rows if value is not None}
    return found


def grouping_of(samples: RunStore) -> Grouping:
    """Which rows of a generate run are of one group, and which of one person."""
    return Grouping(*(column(samples, "samples", "sample_id", name) for name in ("group_id", "identity_id")))
