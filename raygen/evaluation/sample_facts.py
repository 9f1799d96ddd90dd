"""What is said of the samples of an evaluation: which rows they are, who made them, what papers print for them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow.compute as pc

from raygen.core.errors import ConfigError
from raygen.core.hashing import digest
from raygen.evaluation.comparison import ROW_IDS
from raygen.evaluation.config import PublishedConfig
from raygen.evaluation.reference import ReferenceSet, Stores
from raygen.evaluation.score_matrix import ScoreMatrix
from raygen.store.run_store import RunStore, open_input

__all__ = [
    "METHOD",
    "described",
    "kept_ids",
    "method_of",
    "pictures_of",
    "published_facts",
    "restrict",
]


#: Key of another method that made the samples, in the protocol of their METRICS rows.
METHOD: Final = "method"


def method_of(samples: RunStore | None) -> str | None:
    """The name of another method whose pictures were ingested; None for pictures that raygen made."""
    data = None if samples is None else samples.plan().settings.get("data")
    return data.get("method") if isinstance(data, Mapping) else None


def kept_ids(
    samples: str | None, others: Sequence[str], reference: str | None, split: str | None
) -> dict[str, frozenset[str]]:
    """The ids that an evaluation is over, by set, where it leaves others out.

    Samples have a picture in the runs `others` too; the reference and its reconstruction are of a `split`.
    `ConfigError` where there are none.
    """
    kept = {}
    if samples is not None and others:
        kept["all"] = shared_ids(samples, others)
    if reference is not None and split is not None:
        kept |= dict.fromkeys(("reference", "roundtrip"), ids_of_split(reference, split))
    return kept


def restrict(sets: dict[str, dict[str, ScoreMatrix]], kept: Mapping[str, frozenset[str]]) -> None:
    """Leave the scores of other ids out of `sets`, for those sets that `kept` names."""
    from raygen.evaluation.slices import select_ids

    for name in kept.keys() & sets.keys():
        sets[name] = select_ids(sets[name], kept[name])


def shared_ids(samples: str, others: Iterable[str]) -> frozenset[str]:
    """The ids that have a picture in all of these runs; `ConfigError` where there are none."""
    urls = (samples, *others)
    shared = frozenset.intersection(*map(pictured_ids, urls))
    if not shared:
        raise ConfigError(f"rows_of: no row has a picture in all of {', '.join(urls)}; were they made for one plan?")
    return shared


def ids_of_split(faces: str, split: str) -> frozenset[str]:
    """The ids of the FACES of a split; `ConfigError` names the splits that the run has."""
    store, _ = open_input(faces)
    if not store.has("faces"):
        raise ConfigError(
            f"reference_split: {faces} holds no FACES; name the ingest run of the pictures as `reference`"
        )
    ids: dict[str, list[str]] = {}
    for table in store.tables("faces", ["face_id", "split"]):
        for row_id, name in zip(table["face_id"].to_pylist(), table["split"].to_pylist(), strict=True):
            ids.setdefault(name, []).append(row_id)
    if split not in ids:
        there = ", ".join(f"{name} ({len(rows):,})" for name, rows in sorted(ids.items()))
        raise ConfigError(f"reference_split: {faces} has no faces in {split}; it has {there}")
    return frozenset(ids[split])


def pictured_ids(url: str) -> frozenset[str]:
    """The ids of the SAMPLES of a run that have a picture; `ConfigError` where the run has no SAMPLES."""
    store, _ = open_input(url)
    if not store.has("samples"):
        raise ConfigError(f"{url}: is the result of `raygen {store.plan().kind}` and has no table SAMPLES")
    tables = store.tables("samples", ["sample_id", "error"])
    return frozenset(
        row_id for table in tables for row_id in table.filter(pc.is_null(table["error"]))["sample_id"].to_pylist()
    )


def described(
    rows: list[dict[str, Any]], scores: Mapping[str, ScoreMatrix], method: str | None
) -> list[dict[str, Any]]:
    """METRICS rows whose protocols also say which samples they are over, and the method that made these.

    `row_ids`: a digest of the ids of all samples of the set; `raygen compare` asks for equal ones.
    """
    ids = sorted({row_id for matrix in scores.values() for row_id in matrix.ids})
    facts = {ROW_IDS: digest("\n".join(ids).encode())[:16]} | ({} if method is None else {METHOD: method})
    return [
        {**row, "protocol": json.dumps({**json.loads(row["protocol"]), **facts}, sort_keys=True)}
        if row["slice"].partition("/")[0] == "all"
        else row
        for row in rows
    ]


def pictures_of(reference: ReferenceSet | None, samples: RunStore | None) -> Stores:
    """The runs with the pictures of the samples and of the reference.

    A reference that was scored elsewhere is left out, because its masks and identities are not at hand.
    """
    stores: dict[str, tuple[RunStore, str, str]] = {}
    if samples is not None:
        stores["all"] = (samples, "samples", "sample_id")
    if reference is not None and reference.scores is None:
        stores["reference"] = (open_input(reference.url)[0], "faces", "face_id")
    return stores


def published_facts(entries: Iterable[PublishedConfig]) -> dict[str, str]:
    """Published values by name, to be printed; each says that it is not measured."""
    return {
        f"published {name}": f"{value:g} ({entry.source}; not measured here)"
        for entry in entries
        for name, value in entry.values.items()
    }
