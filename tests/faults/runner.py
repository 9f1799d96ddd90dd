"""Run a command once for every k with a fault at its k-th operation, then again without, and compare the results.

    python -m tests.faults.runner FOLDER KINDS FAULT [EVERY [URL]]

KINDS are commands with commas between them, FOLDER has what `tests.faults.world.prepare` makes, results are written
below URL (default: FOLDER). Prints a JSON object for each command. Each command runs in a fork of this process, which
has imported everything and computed nothing.
With EVERY (default 1) only each n-th k is tried, beginning at a k that depends on KIND and FAULT.
"""

import json
import os
import sys
import tempfile
import traceback
import zlib
from pathlib import Path

import s3fs  # noqa: F401 - imported once, before the forks
import torch

from raygen import cli
from raygen.commands.registry import COMMANDS, job_type
from raygen.commands.verify import verify, verify_folder
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore
from tests.faults.injector import KILL, Injector
from tests.faults.world import job, result


def command(kind: str, root: Path, out: str, fault: str = "", at: int = 0) -> tuple[int, str, int]:
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


def problems_of(out: str, golden: dict[str, str]) -> list[str]:
    """How a result differs from the golden one."""
    found = result(out)
    problems = [f"{name}: missing" for name in golden.keys() - found.keys()]
    problems += [f"{name}: left over" for name in found.keys() - golden.keys()]
    problems += [f"{name}: differs" for name in golden.keys() & found.keys() if golden[name] != found[name]]
    for name in (name for name in found if name.endswith("plan.json")):
        folder, attempt = f"{out}/{name}".removesuffix("/plan.json").rsplit("/attempt-", 1)
        problems += verify(RunStore(folder, int(attempt))).problems
    if "raygen.json" in found:
        problems += verify_folder(out).problems
    return problems


def trial(kind: str, root: Path, out: str, fault: str, at: int, golden: dict[str, str]) -> list[str]:
    """What is wrong after a fault at operation `at` and another command; empty where nothing is."""
    store = FileStore(out)
    store.remove_folder("")
    code, said, _ = command(kind, root, out, fault, at)
    problems = []
    if fault != KILL:
        if code not in (0, 4):
            problems.append(f"exit code {code}: {said[-300:]}")
        if "Traceback" in said and fault == "ENOSPC":
            problems.append(f"a traceback: {said[-600:]}")
        if fault == "ENOSPC" and code == 4 and "space" not in said:
            problems.append(f"the disk is not named: {said[-300:]}")
        # A record of success is true where the result is there, as after an error in the last synchronisation.
        record = f"{out}/attempt-00/run.json"
        if code and os.path.exists(record) and json.loads(Path(record).read_text())["exit_code"] == 0:
            problems += [f"run.json says 0: {problem}" for problem in problems_of(out, golden)]
    code, said, _ = command(kind, root, out)
    if code:
        return [*problems, f"the next command ended with {code}: {said[-600:]}"]
    return [*problems, *problems_of(out, golden)]


def main(folder: str, kinds: str, fault: str, every: int, url: str) -> None:
    """See the module."""
    torch.set_num_threads(1)
    for name in COMMANDS:
        job_type(name)
    root = Path(folder)
    for kind in kinds.split(","):
        # One name for all trials: a checkpoint keeps the job that made it, with its `out`.
        out = f"{url}/out/{kind.replace(':', '-')}-{fault}"
        code, said, count = command(kind, root, out)
        assert code == 0, said
        golden = result(out)
        tried = list(range(1 + zlib.crc32(f"{kind} {fault}".encode()) % every, count + 1, every))
        wrong = {at: found for at in tried if (found := trial(kind, root, out, fault, at, golden))}
        FileStore(out).remove_folder("")
        counts = {"operations": count, "tried": len(tried), "wrong": wrong}
        print(json.dumps({"kind": kind, "fault": fault, **counts}), flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(*words[:3], every=int(words[3]) if len(words) > 3 else 1, url=words[4] if len(words) > 4 else words[0])
