"""Open exports of one data set with the packages that their users have, and compare what these read.

    python benchmarks/readers.py runs/identities/chain --packages FOLDER

The exports are the folders `folder`, `huggingface`, `webdataset`, `recordio` and `mds` of the given one. FOLDER has
webdataset and mosaicml-streaming, and mxnet in its folder `mxnet-1.9.1`, as `make nightly` installs them. Each reader
gives labels and pixels; all have to give the same ones. Content credentials are verified by c2pa-python,
`croissant.json` by mlcroissant. Prints a Markdown table; ends with an error where anything differs.
"""

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

#: Label and digest of the pixels, with their number.
Rows = Counter[tuple[int, str]]
#: mxnet 1.9.1 needs numpy 1.23, so it has a process of its own.
MXNET: Final = """
import hashlib, json, sys
import mxnet as mx

folder, found = sys.argv[1], []
records = mx.recordio.MXIndexedRecordIO(f"{folder}/train.idx", f"{folder}/train.rec", "r")
for line in open(f"{folder}/train.lst"):
    header, data = mx.recordio.unpack(records.read_idx(int(line.split("\\t")[0])))
    image = mx.image.imdecode(data).asnumpy()
    found.append([int(header.label), hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()])
print(json.dumps(found))
"""


def digest(image: object) -> str:
    """SHA-256 of shape and pixels of a picture: an array [H, W, 3], a PIL image, or an encoded file."""
    pixels = np.asarray(Image.open(io.BytesIO(image)).convert("RGB") if isinstance(image, bytes) else image)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def torchvision_folder(root: Path) -> Iterable[tuple[int, str]]:
    """`ImageFolder`: labels are the folders in the order of their names."""
    from torchvision.datasets import ImageFolder

    return ((label, digest(image)) for image, label in ImageFolder(str(root / "folder/dataset/images")))


def hugging_face(root: Path) -> Iterable[tuple[int, str]]:
    """`datasets.load_dataset` of the folder."""
    import datasets

    with tempfile.TemporaryDirectory() as cache:
        data = datasets.load_dataset(str(root / "huggingface/dataset"), split="train", cache_dir=cache)
        yield from ((row["label"], digest(row["image"].convert("RGB"))) for row in data)


def duck(root: Path) -> Iterable[tuple[int, str]]:
    """DuckDB, on the Parquet files."""
    import duckdb

    files = root / "huggingface/dataset/data/*.parquet"
    rows = duckdb.sql(f"select label, image.bytes from '{files}'").fetchall()
    return ((label, digest(bytes(data))) for label, data in rows)


def polars_frame(root: Path) -> Iterable[tuple[int, str]]:
    """Polars, on the Parquet files."""
    import polars

    frame = polars.read_parquet(str(root / "huggingface/dataset/data/*.parquet"))
    return zip(frame["label"], map(digest, frame["image"].struct.field("bytes")), strict=True)


def web(root: Path) -> Iterable[tuple[int, str]]:
    """webdataset, all tars on one rank."""
    import webdataset

    tars = sorted(map(str, (root / "webdataset/dataset").glob("*.tar")))
    for row in webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"):
        yield row["cls"], digest(row["png"])


def streaming(root: Path) -> Iterable[tuple[int, str]]:
    """mosaicml-streaming, from the local folder."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    for row in StreamingDataset(local=str(root / "mds/dataset"), batch_size=1, num_canonical_nodes=1):
        yield row["label"], digest(row["image"].convert("RGB"))


def mxnet(root: Path) -> Iterable[tuple[int, str]]:
    """mxnet's `MXIndexedRecordIO` with the keys of `train.lst`."""
    packages = next(Path(p) / "mxnet-1.9.1" for p in sys.path if (Path(p) / "mxnet-1.9.1").is_dir())
    command = [sys.executable, "-S", "-c", MXNET, str(root / "recordio/dataset")]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(packages)}, capture_output=True, text=True, check=True
    )
    return (tuple(row) for row in json.loads(ended.stdout.splitlines()[-1]))


def credentials(root: Path, trusted: Path | None) -> str:
    """States of the signatures of the folder's pictures and of the Parquet files, by c2pa-python.

    With `trusted`, a PEM file, signers below its certificates are `Trusted`, others `Valid`.
    """
    import c2pa
    import polars

    frame = polars.read_parquet(str(root / "huggingface/dataset/data/*.parquet"))
    files = [path.read_bytes() for path in (root / "folder/dataset/images").rglob("*.png")]
    settings = {"trust": {"trust_anchors": trusted.read_text()}, "verify": {"verify_trust": True}} if trusted else {}
    context = c2pa.Context(c2pa.Settings.from_dict(settings))
    states: Counter[str] = Counter()
    for data in [*files, *frame["image"].struct.field("bytes")]:
        with c2pa.Reader("image/png", io.BytesIO(data), context=context) as reader:
            results: dict[str, Any] = reader.get_validation_results()["activeManifest"]
            codes = {entry["code"] for entry in results.get("failure", [])}
            states[f"{reader.get_validation_state()} ({', '.join(sorted(codes)) or 'no failure'})"] += 1
    return "; ".join(f"{count:,} {state}" for state, count in states.items())


def croissant(root: Path, kind: str) -> str:
    """Errors and warnings of `croissant.json`, by mlcroissant."""
    import mlcroissant

    data = mlcroissant.Dataset(jsonld=str(root / kind / "dataset/croissant.json"))
    issues = data.metadata.ctx.issues
    assert not issues.errors, issues.errors
    return f"{kind}: valid, {len(issues.warnings)} warnings"


READERS: Final[dict[str, Callable[[Path], Iterable[tuple[int, str]]]]] = {
    "torchvision, ImageFolder": torchvision_folder,
    "datasets": hugging_face,
    "DuckDB": duck,
    "Polars": polars_frame,
    "webdataset": web,
    "mosaicml-streaming": streaming,
    "mxnet, MXIndexedRecordIO": mxnet,
}


def main() -> None:
    """Print the table; `SystemExit` where readers differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--packages", type=Path, help="folder with the readers that are not installed")
    parser.add_argument("--trust", type=Path, help="PEM file with the certificates of trusted issuers")
    given = parser.parse_args()
    if given.packages:
        sys.path.append(str(given.packages.resolve()))
    first: Rows | None = None
    print("| reader | pictures | identities | distinct pictures | seconds | as the first reader |")
    print("|---|---|---|---|---|---|")
    wrong = []
    for name, read in READERS.items():
        began = time.perf_counter()
        rows: Rows = Counter(read(given.root))
        took = time.perf_counter() - began
        first = rows if first is None else first
        people, pictures = len({label for label, _ in rows}), len({key for _, key in rows})
        print(f"| {name} | {rows.total():,} | {people:,} | {pictures:,} | {took:.0f} | {rows == first} |", flush=True)
        wrong += [name] * (rows != first)
    print(f"\ncontent credentials: {credentials(given.root, given.trust)}")
    for kind in ("folder", "huggingface", "webdataset", "recordio", "mds"):
        print(f"croissant.json: {croissant(given.root, kind)}")
    if wrong:
        raise SystemExit(f"read differently: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
