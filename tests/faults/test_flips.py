"""One bit is changed in a file of a run or of a checkpoint: `verify` names the file, and no reader gives other values.

A seeded sample of bytes of every file; all bytes with RAYGEN_ALL_FLIPS=1, which takes hours.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from raygen import cli
from raygen.commands.verify import verify_folder
from raygen.core.errors import RaygenError
from raygen.models import checkpoint
from raygen.store.run_store import open_input
from raygen.training.trainer import latest_state
from tests.faults.world import job, prepare, run

#: Bytes of each file that are tried, and of a whole run at most.
OF_A_FILE, OF_A_RUN = 6, 90
#: Markers of a start hold a number that their name has too, and a time that nothing reads.
WITHOUT_CONTENT = "starts/"
pytestmark = pytest.mark.slow
RUNS = ("faces", "scored", "csv", "folder", "chosen/selected", "trained")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("world")
    prepare(root)
    parser = {"kind": "small", "folder": str(root / "parser")}
    score = {"parser": parser, "features": parser, "classifier": None}
    run({**job("generate", root, str(root / "scored")), "score": score})
    for form in ("csv", "folder"):
        run(job(f"export:{form}", root, str(root / form)))
    run(job("select", root, str(root / "chosen")))
    run(job("train", root, str(root / "trained")))
    return root


def places(folder: Path) -> Iterator[tuple[Path, int, int]]:
    """File, byte and bit of each trial."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    files = [path for path in files if WITHOUT_CONTENT not in path.relative_to(folder).as_posix()]
    draw = random.Random(folder.name)
    everything = [
        (path, byte, draw.randrange(8))
        for path in files
        for size in [path.stat().st_size]
        for byte in (range(size) if ALL else sorted(draw.sample(range(size), min(OF_A_FILE, size))))
    ]
    yield from everything if ALL else draw.sample(everything, min(OF_A_RUN, len(everything)))


ALL = bool(os.environ.get("RAYGEN_ALL_FLIPS"))


def tables(folder: Path) -> dict[str, pa.Table]:
    """Every table of a run, as readers get it."""
    store, _ = open_input(str(folder))
    names = store.storage.names("data")
    return {name: pa.concat_tables(store.tables(name)) for name in names}


def weights(folder: Path) -> dict[str, Any]:
    """The weights of a checkpoint, and the training state that would be continued."""
    state = latest_state(folder / "training")
    assert state is not None
    document = json.loads((state / "state.json").read_bytes())
    content = [
        (state / "state.safetensors").read_bytes(),
        *(document[key] for key in ("step", "elapsed", "spec", "data")),
    ]
    return {**checkpoint.load(folder).state_dict(), **({"state": content} if state.name == "step-000000003" else {})}


def same(found: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a reader gave the values that it gave before; another, earlier state may have been chosen."""
    if found.keys() - {"state"} != before.keys() - {"state"}:
        return False
    return all(torch.equal(v, before[k]) if isinstance(v, torch.Tensor) else v == before[k] for k, v in found.items())


@pytest.mark.parametrize("name", RUNS)
def test_every_flipped_bit_is_found_and_read_by_no_one(world: Path, name: str) -> None:
    folder = world / name
    read: Callable[[Path], dict[str, Any]] = weights if name == "trained" else tables
    before, missed = read(folder), []
    assert verify_folder(str(folder)).problems == []
    for path, byte, bit in places(folder):
        data = path.read_bytes()
        where = path.relative_to(folder).as_posix()
        path.write_bytes(data[:byte] + bytes([data[byte] ^ 1 << bit]) + data[byte + 1 :])
        try:
            # Problems of the attempt are named from its folder, those of a data set from the folder of the run.
            shown = (where, where.removeprefix("attempt-00/"))
            if not any(problem.startswith(shown) for problem in verify_folder(str(folder)).problems):
                missed.append(f"{where}, byte {byte}, bit {bit}: not found")
            try:
                if not same(read(folder), before):
                    missed.append(f"{where}, byte {byte}, bit {bit}: other values")
            except RaygenError:
                pass
        finally:
            path.write_bytes(data)
    assert not missed, "\n".join(missed)
    assert verify_folder(str(folder)).problems == []


@pytest.mark.parametrize(
    ("name", "file"),
    [("scored", "attempt-00/plan.json"), ("csv", "attempt-00/_SUCCESS"), ("trained", "training/history.jsonl")],
)
def test_the_command_ends_with_5(
    world: Path, name: str, file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = world / name / file
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 2]) + data[1:])
    monkeypatch.setattr("sys.argv", ["raygen", "verify", str(world / name)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    path.write_bytes(data)
    assert end.value.code == 5
    assert file.removeprefix("attempt-00/") in capsys.readouterr().out
