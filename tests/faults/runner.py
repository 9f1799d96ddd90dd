"""Run a command once for every k with a fault at its k-th operation, then again without, and compare the results.

    python -m tests.faults.runner FOLDER KINDS FAULTS [EVERY [URL]]

KINDS are commands and FAULTS faults, with commas between them. FOLDER has what `tests.faults.world.prepare` makes,
results are written below URL (default: FOLDER). Prints a JSON object for each of both. Each command runs in a fork of
this process, which has imported everything and computed nothing. With EVERY (default 1) only each n-th k is tried,
beginning at a k that depends on command and fault. A fault is one of

    kill, ENOSPC, EIO         operation k kills the process, or fails
    kill:ahead, kill:behind   the same, and the clock of the next command is a day and a half off
    second                    at operation k a second driver runs from begin to end, then the first one goes on
    second:ahead, :behind     the same, and the second driver is another machine with such a clock
    500, 503, reset …         HTTP request k to the S3 server meets a fault of `tests.faults.proxy`
"""

import json
import os
import signal
import sys
import zlib
from contextlib import nullcontext
from pathlib import Path

import s3fs  # noqa: F401 - imported once, before the forks
import torch

from raygen.commands.registry import COMMANDS, job_type
from raygen.commands.verify import verify, verify_folder
from raygen.store.filesystem import FileStore
from raygen.store.run_store import RunStore
from tests.faults.child import Child, Ended, Surroundings
from tests.faults.injector import KILL, STOP, Injector
from tests.faults.proxy import SPANS, Proxy
from tests.faults.world import job, result

#: What a second driver of the same training is told.
REFUSED = "another process trains into"
SKEW_S = {"": 0.0, "ahead": 1.5 * 86_400, "behind": -1.5 * 86_400}


class Trials:
    """The trials of one command and one fault."""

    def __init__(self, kind: str, root: Path, out: str, fault: str, proxy: Proxy | None) -> None:
        self.kind, self.root, self.out, self.proxy = kind, root, out, proxy
        self.fault, _, clock = fault.partition(":")
        self.skew = SKEW_S[clock]

    def start(self, at: int = 0, surroundings: Surroundings | None = None) -> Child:
        """Start the command, with the fault at operation `at`."""
        where = surroundings or Surroundings()
        injected = STOP if self.fault == "second" else self.fault
        if self.proxy is not None:
            self.proxy.arm(self.fault, at)
            injected, where = "", Surroundings(where.skew_s, where.machine, self.proxy.url)
        return Child(
            self.kind, job(self.kind, self.root, self.out), Injector(self.out, injected, at if injected else 0), where
        )

    def operations(self) -> int:
        """Operations of a command that meets no fault; its result is there afterwards."""
        FileStore(self.out).remove_folder("")
        ended = self.start().wait()
        assert ended.code == 0, ended.said
        return ended.operations if self.proxy is None else self.proxy.count

    def trial(self, at: int, golden: dict[str, str]) -> list[str] | None:
        """What is wrong after a fault at operation `at` and another command; empty where nothing is.

        None where the command ended before that operation: their number varies by one or two.
        """
        FileStore(self.out).remove_folder("")
        if self.fault == "second":
            problems = self._two_drivers(at, golden)
        else:
            ended = self.start(at).wait()
            if not self._met(at, ended):
                return None
            problems = [] if self.fault == KILL else self._wrong_end(ended, golden)
        ended = self.start(surroundings=Surroundings(self.skew)).wait()
        if ended.code:
            return [*problems, f"the next command ended with {ended.code}: {ended.said[-600:]}"]
        return [*problems, *problems_of(self.out, golden)]

    def _met(self, at: int, ended: Ended) -> bool:
        """Whether the fault at operation `at` happened. A command that ended before it proves nothing."""
        if self.fault == KILL:
            return ended.code == -signal.SIGKILL
        return (ended.operations if self.proxy is None else self.proxy.count) >= at

    def _two_drivers(self, at: int, golden: dict[str, str]) -> list[str]:
        first = self.start(at)
        if not first.stopped():
            return [f"the first driver ended before its operation {at}"]
        elsewhere = Surroundings(self.skew, "elsewhere.example" if self.skew else "")
        second = Child(self.kind, job(self.kind, self.root, self.out), Injector(self.out), elsewhere).wait()
        first.go_on()
        problems = []
        for name, ended in (("first", first.wait()), ("second", second)):
            if ended.code and not (ended.code == 4 and REFUSED in ended.said and name == "second"):
                problems.append(f"the {name} driver ended with {ended.code}: {ended.said[-600:]}")
        return problems or problems_of(self.out, golden)

    def _wrong_end(self, ended: Ended, golden: dict[str, str]) -> list[str]:
        """What is wrong with how a command ended that met an error."""
        code, said, problems = ended.code, ended.said, []
        if code not in (0, 4):
            problems.append(f"exit code {code}: {said[-600:]}")
        if code == 4 and "Error: " not in said.strip().splitlines()[-1]:
            problems.append(f"no sentence at the end: {said[-600:]}")
        if "Traceback" in said and self.fault == "ENOSPC":
            problems.append(f"a traceback: {said[-600:]}")
        if self.fault == "ENOSPC" and code == 4 and "space" not in said:
            problems.append(f"the disk is not named: {said[-300:]}")
        if SPANS.get(self.fault) == 1:  # a client repeats one request
            problems += [f"exit code {code} after one request: {said[-600:]}"] if code else []
            problems += [f"before the next command, {problem}" for problem in problems_of(self.out, golden)]
        store = FileStore(self.out)
        if code and store.exists("attempt-00/run.json"):
            recorded = json.loads(store.get("attempt-00/run.json"))["exit_code"]
            problems += [] if recorded else [f"the command ended with {code}, and run.json says 0"]
        return problems


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


def main(folder: str, kinds: str, faults: str, every: int, url: str) -> None:
    """See the module."""
    torch.set_num_threads(1)
    for name in COMMANDS:
        job_type(name)
    os.environ["RAYGEN_CACHE"] = f"{folder}/cache"
    root, of_requests = Path(folder), [fault for fault in faults.split(",") if fault in SPANS]
    with Proxy(os.environ["AWS_ENDPOINT_URL"]) if of_requests else nullcontext() as proxy:
        for kind in kinds.split(","):
            # One name for all trials: a checkpoint keeps the job that made it, with its `out`.
            out = f"{url}/out/{kind.replace(':', '-')}"
            count = Trials(kind, root, out, "", None).operations()
            golden = result(out)
            for fault in faults.split(","):
                trials = Trials(kind, root, out, fault, proxy if fault in SPANS else None)
                number = trials.operations() if fault in SPANS else count
                places = range(1 + zlib.crc32(f"{kind} {fault}".encode()) % every, number + 1, every)
                results = {at: found for at in places if (found := trials.trial(at, golden)) is not None}
                wrong = {at: found for at, found in results.items() if found}
                counts = {"operations": number, "tried": len(results), "wrong": wrong}
                print(json.dumps({"kind": kind, "fault": fault, **counts}), flush=True)
            FileStore(out).remove_folder("")


if __name__ == "__main__":
    words = sys.argv[1:]
    main(*words[:3], every=int(words[3]) if len(words) > 3 else 1, url=words[4] if len(words) > 4 else words[0])
