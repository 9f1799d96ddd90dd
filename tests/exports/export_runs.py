"""Runs to export, made without a model: a few people, several shards, a failed row."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from raygen.commands.registry import make
from raygen.core.hashing import digest
from raygen.store.images import encode_image, encode_mask, picture
from raygen.store.parquet import RANGE, Slice
from raygen.store.run_store import Plan, RunStore, make_shards
from raygen.store.schemas import FACES, SAMPLES, SELECTION

FORMATS = ("folder", "recordio", "webdataset", "huggingface", "csv", "mds")


def pixels(number: int, size: int = 16) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)


def sample(number: int, people: int | None = 3, **more: object) -> dict[str, object]:
    """Row `number`; people take turns, so that each is in every shard."""
    data = encode_image(pixels(number))
    return {
        "sample_id": f"s{number:03d}",
        "attempt": 0,
        "image": picture(data),
        "plan": "t",
        "seed": 5,
        "run_id": "r",
        "mask": picture(encode_mask(np.full((16, 16), number % 19, np.uint8))),
        "attributes": (1, -1) * 20,
        "text": f"Face, {number}",
        "checkpoint": "c" * 64,
        "sampler": "ddim",
        "steps": 10,
        "guidance": {"joint": 1.5},
        "identity_id": None if people is None else f"p{number % people}",
        "variant": None if people is None else number // people,
        "image_sha256": digest(data),
        **more,
    }


def store_rows(
    url: Path,
    rows: list[dict[str, object]],
    *,
    shard_rows: int = 5,
    refused: tuple[str, ...] = (),
    what: dict[str, object] | None = None,
    kind: str | None = None,
) -> str:
    """A complete run with these SAMPLES, and a SELECTION where some are refused."""
    name, shards = digest(str(len(rows)).encode())[:16], make_shards([Slice(RANGE, 0, len(rows))], shard_rows)
    plan = Plan(
        kind or ("generate" if what is None else "select"), name, {"seed": 7} if what is None else what, 1, shards
    )
    store = RunStore(str(url))
    store.create(plan)
    for shard in plan.shards:
        mine = rows[shard.index * shard_rows :][:shard_rows]
        tables = {"samples": pa.Table.from_pylist(mine, SAMPLES)}
        if refused:
            chosen = [
                {"sample_id": r["sample_id"], "attempt": 0, "accepted": r["sample_id"] not in refused} for r in mine
            ]
            tables["selection"] = pa.Table.from_pylist(chosen, SELECTION)
        store.commit(shard.index, len(plan.shards), tables, timings={}, environment={}, reasons={})
    store.finish(plan)
    return str(url)


def store_faces(url: Path, rows: list[dict[str, object]]) -> str:
    """A complete ingest run with these FACES."""
    plan = Plan("ingest", "f" * 16, {"data": {"kind": "folder"}}, 1, make_shards([Slice(RANGE, 0, len(rows))], 100))
    store = RunStore(str(url))
    store.create(plan)
    store.commit(0, 1, {"faces": pa.Table.from_pylist(rows, FACES)}, timings={}, environment={}, reasons={})
    store.finish(plan)
    return str(url)


def export(samples: str, out: Path, kind: str, *, resources: dict[str, object] | None = None, **more: object):
    """Run an export of shards of 4 rows; keys of the format in `form`."""
    what = {"samples": samples, "format": {"kind": kind, **more.pop("form", {})}, "shard_rows": 4, **more}
    what = {name: value for name, value in what.items() if value is not None}
    return make({"kind": "export", **what, "resources": resources or {}, "out": str(out)}).run(lambda _: None)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a data set."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
