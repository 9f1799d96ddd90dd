"""Make the k-th operation that changes a file below a folder fail, or kill the process there.

The functions of Python through which every change of a local file goes are replaced in this process, so that it does
not matter which part of raygen, or which library, makes the change. On object stores the same is done to the calls of
the s3fs client.
"""

import builtins
import errno
import io
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Faults that are no errors of an operation: the process is killed, or stops there until it is told to go on.
KILL, STOP = "kill", "stop"
#: Functions of `os` that change names or reach the disk.
CHANGES = ("replace", "rename", "link", "mkdir", "unlink", "rmdir", "fsync", "truncate")
#: Coroutines of s3fs that change a bucket.
REMOTE = ("_pipe_file", "_put_file", "_rm_file", "_bulk_delete")


class Injector:
    """Counts operations below `root`; at number `at` (from 1 on) it raises `fault`, or kills or stops the process."""

    def __init__(self, root: str, fault: str = "", at: int = 0) -> None:
        """`root`: a local folder or the URL of one in a bucket."""
        self.root, self.fault, self.at = root.removeprefix("s3://"), fault, at
        self.count, self.lock = 0, threading.Lock()

    def step(self) -> None:
        """One operation is about to happen."""
        with self.lock:  # a training writes its states in a thread
            self.count += 1
            reached = self.count == self.at
        if not reached:
            return
        if self.fault in (KILL, STOP):
            os.kill(os.getpid(), signal.SIGKILL if self.fault == KILL else signal.SIGSTOP)
            return
        code = getattr(errno, self.fault)
        raise OSError(code, os.strerror(code))

    def install(self) -> None:
        """Replace the functions in this process."""
        for name in CHANGES:
            setattr(os, name, self._counting(getattr(os, name)))
        for module in (builtins, io):
            module.open = self._counting(io.open, writes_only=True)  # type: ignore[attr-defined]
        os.open = self._counting(os.open, flags=True)
        self._install_remote()

    def _install_remote(self) -> None:
        import s3fs

        for name in REMOTE:
            original = getattr(s3fs.S3FileSystem, name)

            async def counted(fs: Any, path: Any, *args: Any, original: Any = original, **options: Any) -> Any:
                if any(self.root in str(part) for part in (path, *args)):
                    self.step()
                return await original(fs, path, *args, **options)

            setattr(s3fs.S3FileSystem, name, counted)

    def _counting(
        self, original: Callable[..., Any], *, writes_only: bool = False, flags: bool = False
    ) -> Callable[..., Any]:
        def counted(target: Any, *args: Any, **options: Any) -> Any:
            mode = str(args[0] if args else options.get("mode", "r")) if writes_only else ""
            reads = writes_only and not set(mode) & set("wax+")
            reads |= flags and not (args and args[0] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR))
            if not reads and self._below(target):
                self.step()
            return original(target, *args, **options)

        return counted

    def _below(self, target: Any) -> bool:
        if isinstance(target, int):
            try:
                target = os.readlink(f"/proc/self/fd/{target}")
            except OSError:
                return False
        return os.path.abspath(os.fspath(target)).startswith(self.root) if isinstance(target, str | Path) else False
