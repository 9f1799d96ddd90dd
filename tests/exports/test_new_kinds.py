"""A new export, data set or experiment is one module and its line in the table of its package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import raygen
from raygen.core.config import Config, tagged_union
from raygen.datasets import DATASETS
from raygen.exports import EXPORTS
from raygen.planning import EXPERIMENTS

EXPORT = '''
from typing import Literal

from raygen.exports.base import Export, PackedShard, RecordLocation


class ListExport(Export):
    """One text file of ids."""

    kind: Literal["list"] = "list"

    def pack(self, part, parts, rows):
        lines = [f"{row.stem}\\n".encode() for row in rows]
        locations = [RecordLocation("list.txt", 0, len(line)) for line in lines]
        return PackedShard(locations, piece=b"".join(lines))

    def assemble(self, assembly):
        assembly.join_pieces("list.txt", b"ids\\n")

    def usage(self):
        return "`list.txt`: one id a line."
'''

DATASET = '''
from typing import Literal

import numpy as np
import pyarrow as pa

from raygen.datasets.base import DataSet, load_rows
from raygen.store.images import encode_image, picture


class GreyFaces(DataSet):
    """Grey squares."""

    kind: Literal["grey"] = "grey"
    count: int = 5

    def listing(self):
        return pa.table({"face_id": [f"g{i}" for i in range(self.count)]})

    def load(self, listing):
        return load_rows(listing, lambda row: {"image": picture(encode_image(np.full((8, 8, 3), 99, np.uint8)))})
'''

EXPERIMENT = '''
from typing import Literal

from raygen.planning.base import Planning, conditions_table


class Bare(Planning):
    """A row a face, without conditions."""

    kind: Literal["bare"] = "bare"

    @property
    def factor(self):
        return 1

    def rows(self, inputs, faces=None):
        ids = inputs["face_id"]
        return conditions_table({"sample_id": ids, "plan": ["bare"] * len(ids), "seed": [self.seed] * len(ids)})
'''

SCRIPT = """
import sys
from raygen.commands.registry import make
from raygen.commands.verify import verify
from raygen.store.run_store import RunStore

out = sys.argv[1]
for job in (
    {"kind": "ingest", "data": {"kind": "grey"}, "shard_rows": 2, "batch": 2, "out": f"{out}/faces"},
    {"kind": "plan", "planning": {"kind": "bare"}, "faces": f"{out}/faces", "out": f"{out}/conditions"},
    {"kind": "export", "format": {"kind": "list"}, "faces": f"{out}/faces", "shard_rows": 2, "out": f"{out}/export"},
):
    make(job).run(lambda _: None)
    checked = verify(RunStore(job["out"]))
    assert checked.ok, checked
"""


def test_one_module_and_one_line_are_enough(tmp_path: Path) -> None:
    package = tmp_path / "code/raygen"
    shutil.copytree(Path(raygen.__file__).parent, package, ignore=shutil.ignore_patterns("assets", "__pycache__"))
    for room, module, name, code in (
        ("exports", "list", "ListExport", EXPORT),
        ("datasets", "grey", "GreyFaces", DATASET),
        ("planning", "bare", "Bare", EXPERIMENT),
    ):
        (package / room / f"{module}.py").write_text(code)
        init = package / room / "__init__.py"
        lines = init.read_text().splitlines()
        table = next(i for i, line in enumerate(lines) if line.endswith("= {"))
        lines[table] += f' "{module}": {name},'
        lines.insert(table, f"from raygen.{room}.{module} import {name}")
        init.write_text("\n".join(lines))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "runs")]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "code")}
    ended = subprocess.run(command, cwd=tmp_path / "code", env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    exported = (tmp_path / "runs/export/dataset/list.txt").read_text()
    assert exported.split() == ["ids", "g0", "g1", "g2", "g3", "g4"]
    card = (tmp_path / "runs/export/dataset/README.md").read_text()
    assert "`list.txt`: one id a line." in card


@pytest.mark.parametrize("table", [EXPORTS, DATASETS, EXPERIMENTS], ids=["exports", "datasets", "experiments"])
def test_tables_list_classes_under_their_kind(table: dict[str, type[Config]]) -> None:
    assert tagged_union(table) is not None
    first, second, *_ = table
    with pytest.raises(TypeError, match=f"is listed as '{first}'"):
        tagged_union({first: table[second]})
