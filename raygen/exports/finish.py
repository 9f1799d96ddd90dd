"""The end of an export: pieces become files, sums and card are written, and what is left over goes away.

Knows the order that survives a kill: files appear under their names when they are complete, the check sums after them,
the card after those, the record of it all after the card, and only then are the pieces removed. The same command goes
on wherever it stopped.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from raygen.exports.base import DATASET, PIECES, STAGING, Assembly, Export
from raygen.exports.card import Totals
from raygen.spec import canonical, digest
from raygen.storage import Storage
from raygen.store import Store

__all__ = ["CARD", "RECORD", "SUMS", "finish"]

RECORD: Final = "attempt-00/ASSEMBLED.json"
CARD: Final = "README.md"
SUMS: Final = "SHA256SUMS"


def finish(
    format: Export, store: Store, people: tuple[str, ...], manifest: Mapping[str, Any], card: Callable[[Totals], str]
) -> dict[str, Any]:
    """Put the data set together unless that is done already; rows, files and bytes of it."""
    storage = Storage(store.url)
    if not storage.exists(RECORD):
        assembly = Assembly(store, storage, people)
        format.assemble(assembly)
        totals = _totals(assembly, manifest)
        text = card(totals).encode()
        assembly.made[CARD] = len(text), digest(text)
        _sums(assembly)
        storage.put(f"{DATASET}/{CARD}", text)
        storage.put(RECORD, canonical({**asdict(totals), "made": assembly.made}))
    storage.remove_folder(PIECES)
    storage.remove_folder(STAGING)
    found: dict[str, Any] = json.loads(storage.get(RECORD))
    return found


def _totals(assembly: Assembly, manifest: Mapping[str, Any]) -> Totals:
    """Rows as they are committed, files and bytes as they lie there; card and sums, which follow, do not count."""
    rows = masks = 0
    for table in assembly.tables():
        rows += table.num_rows
        masks += table.num_rows - table["mask_bytes"].null_count
    for name in (CARD, SUMS):  # of a finish that was killed after it
        assembly.storage.remove(f"{DATASET}/{name}")
    files, size = assembly.storage.total(DATASET)
    reasons = dict(manifest["quarantined"])
    return Totals(rows, sum(reasons.values()), files, size, masks, reasons)


def _sums(assembly: Assembly) -> None:
    """SHA256SUMS: a line a file, in the order of shards, and then what was put together."""
    with assembly.building(SUMS) as file:
        for table in assembly.store.tables("files", ["path", "sha256"]):
            paths, sums = (table[name].to_pylist() for name in ("path", "sha256"))
            file.write("".join(f"{sha}  {path}\n" for path, sha in zip(paths, sums, strict=True)).encode())
        file.write("".join(f"{sha}  {path}\n" for path, (_, sha) in sorted(assembly.made.items())).encode())
