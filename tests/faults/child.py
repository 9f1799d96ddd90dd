"""One command in a fork of this process, with its own clock, machine name and way to the storage."""

import asyncio
import json
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

from raygen import cli
from tests.faults.injector import Injector

#: Clients wait longer and longer between their attempts; here at most this long.
LONGEST_WAIT_S = 0.02


class Surroundings(NamedTuple):
    """What a command sees of the world: seconds that its clock is ahead, machine name, URL of the S3 server."""

    skew_s: float = 0.0
    machine: str = ""
    endpoint: str = ""

    def install(self) -> None:
        """Replace them in this process. Times of files stay those of the disk."""
        seconds, nanoseconds = time.time, time.time_ns
        if self.skew_s:
            time.time = lambda: seconds() + self.skew_s
            time.time_ns = lambda: nanoseconds() + int(self.skew_s * 1e9)
        if self.machine:
            platform.node = lambda: self.machine
        if self.endpoint:
            os.environ["AWS_ENDPOINT_URL"] = self.endpoint
            wait, wait_async = time.sleep, asyncio.sleep
            time.sleep = lambda s: wait(min(s, LONGEST_WAIT_S))

            async def shorter(s: float, *args: Any) -> Any:
                return await wait_async(min(s, LONGEST_WAIT_S), *args)

            asyncio.sleep = shorter  # type: ignore[assignment]


class Ended(NamedTuple):
    """Exit code (negative: a signal), output, and number of operations of a command."""

    code: int
    said: str
    operations: int


class Child:
    """A running command."""

    def __init__(self, kind: str, document: dict[str, Any], injector: Injector, surroundings: Surroundings) -> None:
        """`document`: the job of the command `kind`."""
        self.folder = tempfile.TemporaryDirectory()
        file, self.said, self.counted = (Path(self.folder.name) / name for name in ("job.yaml", "said", "count"))
        file.write_text(json.dumps(document))
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run(["raygen", kind.partition(":")[0], str(file)], injector, surroundings)

    def _run(self, words: list[str], injector: Injector, surroundings: Surroundings) -> None:
        code = 1
        try:
            handle = os.open(self.said, os.O_CREAT | os.O_WRONLY)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            sys.argv = words
            surroundings.install()
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
            self.counted.write_text(str(injector.count))
            os._exit(code)

    def stopped(self) -> bool:
        """Wait until the process stops itself; False where it ended."""
        done = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        return done is not None and done.si_code == os.CLD_STOPPED

    def go_on(self) -> None:
        """Let a stopped process go on."""
        os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> Ended:
        """Wait for the end."""
        _, status = os.waitpid(self.pid, 0)
        said = self.said.read_text(errors="replace")
        count = int(self.counted.read_text()) if self.counted.exists() else 0
        self.folder.cleanup()
        return Ended(os.waitstatus_to_exitcode(status), said, count)
