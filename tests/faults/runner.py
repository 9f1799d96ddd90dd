"""Run a command once for every k with a fault at its k-th operation, then again without, and compare the results.

    python -m tests.faults.runner FOLDER KIND FAULT [every]

Prints a JSON object. Each command runs in a fork of this process, which has imported everything and computed nothing.
With `every` (default 1) only each n-th k is tried, beginning at a k that depends on KIND and FAULT.
"""

import json
import os
import shutil
import sys
import tempfile
import traceback
import zlib
from pathlib import Path

import torch

from raygen import cli
from raygen.commands.registry import COMMANDS, job_type
from raygen.commands.verify import verify
from raygen.store.run_store import RunStore
from tests.faults.injector import KILL, Injector
from tests.faults.world import job, result


def command(kind: str, root: Path, out: Path, fault: str = "", at: int = 0) -> tuple[int, str, int]:
    """Exit code (negative: a signal), output, and number of operations of one command in a fork."""
    with tempfile.TemporaryDirectory() as scratch:
        file, said, counted = (Path(scratch) / name for name in ("job.yaml", "said", "count"))
        file.write_text(json.dumps(job(kind, root, out)))
        child = os.fork()
        if child == 0:
            _child(kind.partition(":")[0], file, said, counted, Injector(out, fault, at))
        _, status = os.waitpid(child, 0)
        count = int(counted.read_text()) if counted.exists() else 0
        return os.waitstatus_to_exitcode(status), said.read_text(errors="replace"), count


def _child(name: str, file: Path, said: Path, counted: Path, injector: Injector) -> None:
    code = 1
    try:
        handle = os.open(said, os.O_CREAT | os.O_WRONLY)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.argv = ["raygen", name, str(file)]
        injector.install()
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        injector.at = 0
        counted.write_text(str(injector.count))
        os._exit(code)


def problems_of(out: Path, golden: dict[str, str]) -> list[str]:
    """How a result differs from the golden one."""
    found = result(out)
    problems = [f"{name}: missing" for name in golden.keys() - found.keys()]
    problems += [f"{name}: left over" for name in found.keys() - golden.keys()]
    problems += [f"{name}: differs" for name in golden.keys() & found.keys() if golden[name] != found[name]]
    for plan in out.rglob("attempt-*/plan.json"):
        report = verify(RunStore(str(plan.parent.parent), int(plan.parent.name[-2:])))
        problems += report.problems
    return problems


def trial(kind: str, root: Path, out: Path, fault: str, at: int, golden: dict[str, str]) -> list[str]:
    """What is wrong after a fault at operation `at` and another command; empty where nothing is."""
    shutil.rmtree(out, ignore_errors=True)
    code, said, _ = command(kind, root, out, fault, at)
    problems = []
    if fault != KILL:
        if code not in (0, 4):
            problems.append(f"exit code {code}: {said[-300:]}")
        if "Traceback" in said and fault == "ENOSPC":
            problems.append(f"a traceback: {said[-600:]}")
        if fault == "ENOSPC" and code == 4 and "space" not in said:
            problems.append(f"the disk is not named: {said[-300:]}")
        records = [json.loads(path.read_text()) for path in out.rglob("run.json")]
        if code and records and all(record["exit_code"] == 0 for record in records) and kind != "select":
            problems.append("run.json says 0")
    code, said, _ = command(kind, root, out)
    if code:
        return [*problems, f"the next command ended with {code}: {said[-600:]}"]
    return [*problems, *problems_of(out, golden)]


def main(folder: str, kind: str, fault: str, every: int = 1) -> None:
    """See the module."""
    torch.set_num_threads(1)
    for name in COMMANDS:
        job_type(name)
    root = Path(folder)
    # One name for all of them: a checkpoint keeps the job that made it, with its `out`.
    out = root / "out" / f"{kind.replace(':', '-')}-{fault}"
    code, said, count = command(kind, root, out)
    assert code == 0, said
    golden = result(out)
    first = 1 + zlib.crc32(f"{kind} {fault}".encode()) % every
    tried = list(range(first, count + 1, every))
    wrong = {at: found for at in tried if (found := trial(kind, root, out, fault, at, golden))}
    shutil.rmtree(out)
    print(json.dumps({"kind": kind, "fault": fault, "operations": count, "tried": len(tried), "wrong": wrong}))


if __name__ == "__main__":
    main(*sys.argv[1:4], every=int(sys.argv[4]) if len(sys.argv) > 4 else 1)
