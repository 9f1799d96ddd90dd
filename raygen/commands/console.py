"""Output on the terminal: facts in two columns, errors, and progress as a bar or, without a terminal, as lines."""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from raygen.core.location import redact
from raygen.core.units import duration
from raygen.execution.executor import Progress

__all__ = ["console", "facts", "failure", "heading", "note", "progress"]


console = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)
#: Seconds between heartbeat lines where there is no terminal.
HEARTBEAT_S = 10.0


def heading(text: str) -> None:
    """One bold line."""
    console.print(f"[bold]{text}[/bold]")


def note(text: str) -> None:
    """One indented line."""
    console.print(f"  {text}", markup=False)


def facts(values: Mapping[str, object]) -> None:
    """Names and values in two columns."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        console.print(f"  [dim]{escape(f'{name:<{width}}')}[/dim]  ", end="")
        console.print(_text(value), markup=False)  # never wrapped, so that a digest can be copied


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def failure(error: BaseException) -> None:
    """Name and message of an error that raygen raised on purpose, without a traceback."""
    errors.print(f"[red]{type(error).__name__}[/red]: ", end="")
    errors.print(redact(printable(str(error))), markup=False)


def printable(text: str) -> str:
    """`text` with what a terminal obeys or cannot show (control sequences, half surrogate pairs) as escapes."""
    return "".join(
        letter if letter in "\n\t" or letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


class _Lines:
    """Progress as lines: one at the start, one every `HEARTBEAT_S` seconds, one at the end."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.last = 0.0
        self.line = ""
        self.waiting = False

    def __call__(self, state: Progress) -> None:
        now = time.monotonic()
        name = f"{self.label} {state.stage}".rstrip()
        unfinished = state.note or state.waiting or state.done_shards < state.shards
        fresh, self.waiting = bool(state.waiting) and not self.waiting, bool(state.waiting)
        if now - self.last < HEARTBEAT_S and unfinished and self.line.startswith(f"  {name}: ") and not fresh:
            return
        line = f"{state.done_rows / max(state.rows, 1):.0%}, {state.note}"
        if not state.note:
            remaining = f", {duration(state.eta_s)} left" if state.eta_s else ""
            failed = f", {state.bad} failed" if state.bad else ""
            line = (
                f"{state.done_rows:,}/{state.rows:,} rows, shard {state.done_shards}/{state.shards}"
                f"{f', {state.rate:.1f} rows/s' if state.new_rows else ''}{remaining}{failed}"
            )
        if state.waiting:
            line = f"{line}; {state.waiting}" if state.done_rows else state.waiting
        line = f"  {name}: {line}"
        if line == self.line:
            return
        self.last, self.line = now, line
        print(line, flush=True)


class _Bar:
    """Progress as one bar."""

    def __init__(self, bars: Bars, label: str) -> None:
        self.bars = bars
        self.label = label
        self.task = bars.add_task(label, total=None, rate="")

    def __call__(self, state: Progress) -> None:
        rate = state.note or (f"{state.rate:.1f} rows/s" if state.new_rows else "")
        self.bars.update(
            self.task,
            description=f"{self.label} {state.stage}".rstrip(),
            total=state.rows,
            completed=state.done_rows,
            rate=f"{rate} {state.waiting}".strip(),
        )


@contextmanager
def progress(label: str) -> Iterator[Any]:
    """A callable that is given `Progress` and prints it: a bar on a terminal, lines elsewhere."""
    if not sys.stdout.isatty():
        yield _Lines(label)
        return
    columns = (
        TextColumn("  {task.description:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as bars:
        yield _Bar(bars, label)
