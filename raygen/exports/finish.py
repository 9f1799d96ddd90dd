"""The end of an export: pieces become files, the card is written, and what is left over goes away.

Knows the order that survives a kill: files appear under their names when they are complete, the card after them, the
record of it after the card, and only then are the pieces removed. The same command goes on wherever it stopped.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Final

from raygen.exports.base import DATASET, PIECES, STAGING, Assembly, Export
from raygen.exports.card import Totals
from raygen.spec import canonical
from raygen.storage import Storage
from raygen.store import Store

__all__ = ["finish"]

RECORD: Final = "attempt-00/ASSEMBLED.json"
CARD: Final = "README.md"


def finish(
    format: Export, store: Store, people: tuple[str, ...], manifest: Mapping[str, Any], card: Callable[[Totals], str]
) -> dict[str, Any]:
    """Put the data set together unless that is done already; rows, files and bytes of it."""
    storage = Storage(store.url)
    if not storage.exists(RECORD):
        assembly = Assembly(store, storage, people)
        format.assemble(assembly)
        totals = _totals(assembly, manifest)
        storage.put(f"{DATASET}/{CARD}", card(totals).encode())
        storage.put(RECORD, canonical(asdict(totals)))
    storage.remove_folder(PIECES)
    storage.remove_folder(STAGING)
    found: dict[str, Any] = json.loads(storage.get(RECORD))
    return found


def _totals(assembly: Assembly, manifest: Mapping[str, Any]) -> Totals:
    """Rows as they are committed, files and bytes as they lie there; the card does not count itself."""
    rows = masks = 0
    for table in assembly.tables():
        rows += table.num_rows
        masks += table.num_rows - table["mask_bytes"].null_count
    assembly.storage.remove(f"{DATASET}/{CARD}")  # of a finish that was killed after it
    files, size = assembly.storage.total(DATASET)
    reasons = dict(manifest["quarantined"])
    return Totals(rows, sum(reasons.values()), files, size, masks, reasons)
