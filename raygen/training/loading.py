"""FACES and LATENTS tables -> training data, in memory or in the files of a folder."""

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raygen.core.errors import InputError
from raygen.core.types import AnyArray
from raygen.models.conditions import Conditions, Shapes, Tokenize
from raygen.store import disk
from raygen.store.images import images_from_rows
from raygen.store.parquet import to_parquet
from raygen.store.schemas import texts_by_name
from raygen.store.sealed import to_bytes
from raygen.training.cleanup import explained
from raygen.training.data import IDS, RECORD, WIDTHS, Rows, TrainingData, assembled, open_training_data
from raygen.training.row_file import RowWriter

__all__ = ["UNWRITTEN", "load_training_data", "texts_of"]


#: Decoded pictures of at most this many bytes are in memory for each thread that decodes.
DECODED: Final = 32 << 20
THREADS: Final = 8
#: What cannot be written, and what to do then.
UNWRITTEN: Final = ("the prepared training data", "choose another disk with `cache`")
#: Faces that were left out and are named.
NAMED: Final = 16


def load_training_data(
    faces: Iterable[pa.Table],
    *,
    size: int,
    modalities: Iterable[str] = (),
    latents: Iterable[pa.Table] | None = None,
    autoencoder: str | None = None,
    split: str | None = None,
    tokenize: Tokenize | None = None,
    caption: str = "overall",
    pictures: bool = False,
    places: Iterable[str] = (),
    people: bool = False,
    mirrored: bool = True,
    folder: Path | None = None,
    limit: int | None = None,
) -> TrainingData:
    """FACES tables (and LATENTS, joined by `face_id`) -> arrays; pictures and masks at `size`.

    Pictures are read where there are no latents, or with `pictures`. `places`: the columns of boxes and keypoints to
    read. `people`: `identity_id` is read; a face without it is left out. `mirrored`: of latents, whether those of
    mirrored pictures are read. Of a face's texts the one named `caption` is used, as ids of `tokenize`; a face without
    it has no text. Bad faces are left out and listed. With a `folder` the arrays are written into files there, and
    memory holds a few pictures at a time; `open_training_data` opens it again. `limit`: no more is read once there are
    so many faces, to try a training. `InputError`: no rows, duplicate ids, or latents of another first stage than
    `autoencoder` (its sha256).
    """
    reader = _FaceReader(
        size=size,
        names=tuple(sorted(set(modalities) - {"style"})),  # a face's own style is its picture
        split=split,
        tokenize=tokenize,
        caption=caption,
        pictures=latents is None or pictures,
        places=tuple(places),
        people=people,
    )
    columns = _Columns(folder)
    found = _add_faces(columns, reader, faces, limit)
    if latents is not None:
        rows = _add_latents(columns, latents, found.ids, autoencoder, mirrored)
    else:
        rows = {"face": np.arange(len(found.ids)), "flipped": np.zeros(len(found.ids), dtype=bool)}
    for name, values in rows.items():
        columns.add(name, values)
    facts = {"identities": found.identities, "left_out": found.left_out, "left_out_rows": found.left_out_rows}
    arrays = columns.close()
    if folder is None:
        return assembled(found.ids, arrays, facts)
    with explained(folder, *UNWRITTEN):
        disk.write(folder / IDS, to_parquet(pa.table({"id": found.ids})), once=False)
        disk.write(folder / RECORD, to_bytes({**facts, "arrays": columns.records}), once=False)
    return open_training_data(folder)


@dataclass(frozen=True)
class _Faces:
    """What is in memory of all faces: ids of the good ones, the number of people, and who was left out."""

    ids: pa.Array
    identities: int
    left_out: list[str]
    left_out_rows: int


def _add_faces(columns: "_Columns", reader: "_FaceReader", faces: Iterable[pa.Table], limit: int | None) -> _Faces:
    """Add the arrays of all faces that `reader` can read; errors as in `load_training_data`."""
    ids: list[pa.Array] = []
    people: list[pa.Array] = []
    places: dict[str, list[AnyArray]] = {name: [] for name in reader.places}
    left_out: list[str] = []
    left_out_rows = rows = identities = 0
    for part in _in_order(reader, faces):
        ids.append(part.ids)
        rows += len(part.ids)
        left_out += part.errors[: NAMED - len(left_out)]
        left_out_rows += len(part.errors)
        for name, values in part.columns.items():
            columns.add(name, values)
        for name, values in part.places.items():
            places[name].append(values)
        if part.people is not None:
            people.append(part.people)
        if limit is not None and rows >= limit:
            break
    if not rows:
        raise InputError(f"no face to train on ({left_out_rows} left out)", reason="empty")
    names = pa.concat_arrays(ids)
    if pc.count_distinct(names).as_py() != rows:
        raise InputError("face ids are not unique", reason="duplicate")
    for name, parts in places.items():
        most = max(1, *(values.shape[1] for values in parts))
        for values in parts:
            columns.add(f"places_{name}", np.pad(values, ((0, 0), (0, most - values.shape[1]), (0, 0))))
    if people:
        known = pa.concat_arrays(people)
        distinct = pc.unique(known).sort()
        identities = len(distinct)
        columns.add("identity", pc.index_in(known, distinct).to_numpy().astype(np.int64))
    return _Faces(names, identities, left_out, left_out_rows)


class _Columns:
    """Arrays that grow by rows, in memory or in the files of a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.parts: dict[str, list[AnyArray]] = {}
        self.writers: dict[str, RowWriter] = {}
        self.records: dict[str, dict[str, Any]] = {}

    def add(self, name: str, rows: AnyArray) -> None:
        if self.folder is None:
            self.parts.setdefault(name, []).append(rows)
            return
        with explained(self.folder, *UNWRITTEN):
            if name not in self.writers:
                self.writers[name] = RowWriter(self.folder / name)
            self.writers[name].add(rows)

    def close(self) -> dict[str, Rows]:
        with explained(self.folder or Path(), *UNWRITTEN):
            self.records = {name: writer.close() for name, writer in self.writers.items()}
        return {name: np.concatenate(parts) for name, parts in self.parts.items()}


@dataclass(frozen=True)
class _Part:
    """Decoded rows of FACES: what is good of them, and the errors of the others."""

    ids: pa.Array
    columns: Mapping[str, AnyArray]
    places: Mapping[str, AnyArray]
    people: pa.Array | None
    errors: list[str]


@dataclass(frozen=True)
class _FaceReader:
    """Decodes FACES rows as `load_training_data` says."""

    size: int
    names: tuple[str, ...]
    split: str | None
    tokenize: Tokenize | None
    caption: str
    pictures: bool
    places: tuple[str, ...]
    people: bool

    def slices(self, faces: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Rows of the split, as many at a time as memory should hold decoded."""
        at_once = max(1, DECODED // (self.size * self.size * 3))
        for table in faces:
            rows = table if self.split is None else table.filter(pc.equal(table["split"], self.split))
            for start in range(0, rows.num_rows, at_once):
                yield rows.slice(start, at_once)

    def decode(self, rows: pa.Table) -> _Part:
        if "text" in self.names:
            rows = rows.append_column("text", texts_of(rows, self.caption))
        length = 0 if self.tokenize is None else int(self.tokenize([""]).shape[1])
        decoded, errors = Conditions.from_rows(rows, self.names, shapes=Shapes(self.size, length, self.tokenize))
        if self.pictures:
            pixels, image_errors = images_from_rows(rows, self.size)
            errors = [a or b for a, b in zip(errors, image_errors, strict=True)]
        if self.people:
            missing = rows["identity_id"].is_null().to_pylist()
            errors = [
                e or ("identity: identity_id is missing" if m else None) for e, m in zip(errors, missing, strict=True)
            ]
        good = np.array([i for i, error in enumerate(errors) if error is None], dtype=np.int64)
        kept = decoded.take(torch.from_numpy(good))
        columns = {f"present_{name}": kept.present[name].numpy() for name in self.names}
        if self.pictures:
            columns["images"] = pixels[good]
        for name, kind in (("mask", np.uint8), ("attributes", np.int8), ("text", np.int32), ("hint", np.uint8)):
            if (values := getattr(kept, name)) is not None:
                columns[name] = values.numpy().astype(kind)
        face_ids, index = rows["face_id"].combine_chunks(), pa.array(good)
        return _Part(
            face_ids.take(index),
            columns,
            {name: _padded(rows, name, good) for name in self.places},
            rows["identity_id"].combine_chunks().take(index) if self.people else None,
            [f"{face_ids[i]}: {error}" for i, error in enumerate(errors) if error is not None],
        )


def _in_order(reader: _FaceReader, faces: Iterable[pa.Table]) -> Iterator[_Part]:
    """Decoded slices in the order of the rows; a few are decoded at the same time."""
    count = min(THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(count, thread_name_prefix="decode") as threads:
        slices = reader.slices(faces)
        pending: deque[Future[_Part]] = deque(threads.submit(reader.decode, rows) for rows in islice(slices, count))
        while pending:
            part = pending.popleft().result()
            pending.extend(threads.submit(reader.decode, rows) for rows in islice(slices, 1))
            yield part


def _padded(rows: pa.Table, name: str, good: AnyArray) -> AnyArray:
    """Boxes or keypoints of the good rows, float32 [n, K, width], zeros where a face has fewer."""
    values = rows[name].to_pylist() if name in rows.column_names else [None] * rows.num_rows
    listed = [values[i] or [] for i in good]
    width = WIDTHS[name]
    result = np.zeros((len(listed), max([1, *map(len, listed)]), width), dtype=np.float32)
    for i, items in enumerate(listed):
        result[i, : len(items)] = items or np.zeros((0, width))
    return result


def texts_of(faces: pa.Table, caption: str) -> pa.Array:
    """The text of that name of every face, null where it has none."""
    return pa.array([texts_by_name(texts).get(caption) for texts in faces["texts"].to_pylist()], pa.string())


def _add_latents(
    columns: _Columns, tables: Iterable[pa.Table], ids: pa.Array, autoencoder: str | None, mirrored: bool
) -> dict[str, AnyArray]:
    """Add the moments of known faces; the face, whether mirrored, and the row of moments of each training row.

    The order of training rows is that of faces, then of mirroring, whatever the order of the tables.
    """
    face: list[AnyArray] = []
    flipped: list[AnyArray] = []
    shape: list[int] | None = None
    for table in tables:
        others = set(table["autoencoder"].unique().to_pylist()) - {autoencoder}
        if autoencoder is not None and others:
            raise InputError(f"latents come from another first stage: {sorted(others)}", reason="autoencoder")
        index = pc.index_in(table["face_id"], ids)
        flips = pc.equal(table["transform"], "flip")
        used = index.is_valid() if mirrored else pc.and_(index.is_valid(), pc.invert(flips))
        rows = table.filter(used)
        if not rows.num_rows:
            continue
        shape = shape or rows["shape"][0].as_py()
        shapes = rows["shape"].combine_chunks()
        same = pc.all(pc.equal(pc.list_value_length(shapes), len(shape))).as_py()
        if not same or (shapes.flatten().to_numpy().reshape(-1, len(shape)) != shape).any():
            raise InputError(f"latents have several shapes; the first is {shape}", reason="shape")
        moments = rows["moments"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        columns.add("moments", moments.reshape(rows.num_rows, *shape))
        face.append(index.filter(used).to_numpy().astype(np.int64))
        flipped.append(flips.filter(used).to_numpy())
    if not face:
        raise InputError("no latents of these faces", reason="empty")
    faces, flips = np.concatenate(face), np.concatenate(flipped).astype(bool)
    by_face = np.lexsort((flips, faces))
    return {"face": faces[by_face], "flipped": flips[by_face], "latent": by_face}
