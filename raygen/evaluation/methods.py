"""Methods side by side: METRICS of several evaluations as one table, refused where they were not measured alike."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raygen.core.errors import ConfigError
from raygen.evaluation.comparison import ROW_IDS, check_names, check_protocols, side_by_side
from raygen.metrics.registry import lookup, order

__all__ = ["Line", "MethodTable", "MethodValue", "Published", "method_table"]


Row = Mapping[str, Any]
#: Differences that a message names.
NAMED: Final = 6


@dataclass(frozen=True)
class MethodValue:
    """A measured value with its 95 % interval, where it has one."""

    value: float
    low: float | None
    high: float | None

    def text(self, digits: int) -> str:
        """`0.735 (0.731 to 0.739)`."""
        interval = (
            "" if self.low is None or self.high is None else f" ({self.low:.{digits}f} to {self.high:.{digits}f})"
        )
        return f"{self.value:,.{digits}f}{interval}"


@dataclass(frozen=True)
class Line:
    """One metric of all methods: its name (with its part in brackets), title, direction, digits, n, cells by method."""

    name: str
    title: str
    better: str
    digits: int
    n: int
    cells: Mapping[str, MethodValue]

    @property
    def best(self) -> str | None:
        """The method with the best value; None where no direction is better, or fewer than two were measured."""
        if not self.better or len(self.cells) < 2:
            return None
        return (min if self.better == "lower" else max)(self.cells, key=lambda name: self.cells[name].value)


@dataclass(frozen=True)
class Published:
    """A value that a paper prints; it was not measured here."""

    method: str
    metric: str
    value: float
    source: str
    measured: str


@dataclass(frozen=True)
class MethodTable:
    """Columns are methods, lines metrics. `published` stands apart from what was measured."""

    methods: tuple[str, ...]
    lines: tuple[Line, ...]
    published: tuple[Published, ...]
    reference: str

    def markdown(self) -> str:
        """The table in Markdown; the best value of a line is bold."""
        head = ["metric", "n", *self.methods]
        rows = [head, ["---", "---:", *(["---:"] * len(self.methods))]]
        for line in self.lines:
            cells = [line.cells[name].text(line.digits) if name in line.cells else "" for name in self.methods]
            bold = [f"**{c}**" if name == line.best else c for name, c in zip(self.methods, cells, strict=True)]
            direction = f", {line.better} is better" if line.better else ""
            rows.append([f"{line.name}{direction}", f"{line.n:,}", *bold])
        text = "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in rows) + "\n"
        if self.published:
            text += "\nPublished, not measured here:\n\n| method | metric | value | source | measured as |\n"
            text += "|---|---|---:|---|---|\n"
            for entry in self.published:
                words = (entry.method, entry.metric, f"{entry.value:g}", entry.source, entry.measured)
                text += f"| {' | '.join(map(_escaped, words))} |\n"
        return text

    def csv(self) -> str:
        """A line a metric: its name, direction and n; of each method value, low and high. Only measured values."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        columns = [f"{name}{part}" for name in self.methods for part in ("", " low", " high")]
        writer.writerow(["metric", "better", "n", *columns])
        for line in self.lines:
            cells = [line.cells.get(name) for name in self.methods]
            values = [v for cell in cells for v in ((cell.value, cell.low, cell.high) if cell else (None, None, None))]
            writer.writerow([line.name, line.better, line.n, *("" if v is None else repr(v) for v in values)])
        return buffer.getvalue()

    def document(self) -> dict[str, Any]:
        """The table as plain values, for `comparison.json`."""
        lines = [
            {
                "metric": line.name,
                "title": line.title,
                "better": line.better,
                "digits": line.digits,
                "n": line.n,
                "values": {name: vars(cell) for name, cell in line.cells.items()},
            }
            for line in self.lines
        ]
        published = [vars(entry) for entry in self.published]
        return {"methods": self.methods, "reference": self.reference, "metrics": lines, "published": published}

    @staticmethod
    def of(document: Mapping[str, Any]) -> "MethodTable":
        """The table of a `document`."""
        lines = [
            Line(
                line["metric"],
                line["title"],
                line["better"],
                line["digits"],
                line["n"],
                {name: MethodValue(**cell) for name, cell in line["values"].items()},
            )
            for line in document["metrics"]
        ]
        published = tuple(Published(**entry) for entry in document["published"])
        return MethodTable(tuple(document["methods"]), tuple(lines), published, document["reference"])


def method_table(measured: Mapping[str, Sequence[Row]], published: Iterable[Published] = ()) -> MethodTable:
    """METRICS rows by method -> one table.

    `ConfigError` names what differs where two methods were not measured with the same reference, protocol and network,
    over the same number of rows, and over the same rows. A metric that only some methods have is compared among these.
    """
    rows = [
        {**row, "protocol": json.dumps({**json.loads(row["protocol"] or "{}"), "variant": method})}
        for method, own in measured.items()
        for row in own
    ]
    columns = {
        name: cells for name, cells in side_by_side(rows).items() if any(_of_samples(row) for row in cells.values())
    }
    problems = [problem for name, cells in columns.items() for problem in _differences(name, cells)]
    try:
        check_names({method: [cells[method] for cells in columns.values() if method in cells] for method in measured})
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        unique = list(dict.fromkeys(problems))
        more = f"; and {len(unique) - NAMED} more" if len(unique) > NAMED else ""
        raise ConfigError(f"these were not measured alike. {'; '.join(unique[:NAMED])}{more}")
    lines = [_line(name, cells) for name, cells in columns.items()]
    lines.sort(key=lambda line: (order(line.name.partition(" ")[0]), line.name))
    reference = next((str(row["reference"]) for row in rows if row.get("reference")), "")
    return MethodTable(tuple(measured), tuple(lines), tuple(published), reference)


def _of_samples(row: Row) -> bool:
    return str(row["slice"]).partition("/")[0] == "all"


def _differences(column: str, cells: Mapping[str, Row]) -> list[str]:
    """How the rows of one metric were measured differently; empty where they are comparable."""
    problems = []
    try:
        check_protocols(column, cells)
    except ConfigError as error:
        problems.append(str(error))
    (first, one), *others = cells.items()
    for name, other in others:
        if one["n"] != other["n"]:
            problems.append(f"n: {first} has {one['n']:,} rows and {name} {other['n']:,} ({_SAME_ROWS})")
        elif (rows := _row_ids(one)) is None or (others_rows := _row_ids(other)) is None:
            old = first if _row_ids(one) is None else name
            problems.append(f"rows: {old} does not say over which rows; evaluate it again with this raygen")
        elif rows != others_rows:
            problems.append(f"rows: {first} and {name} are over other rows, though as many ({_SAME_ROWS})")
    return problems


_SAME_ROWS: Final = "`rows_of` of `raygen evaluate` leaves out the rows that the other lacks"


def _row_ids(row: Row) -> str | None:
    value = json.loads(row["protocol"] or "{}").get(ROW_IDS)
    return None if value is None else str(value)


def _line(name: str, cells: Mapping[str, Row]) -> Line:
    metric = lookup(name.partition(" ")[0])
    values = {method: MethodValue(row["value"], row["ci_low"], row["ci_high"]) for method, row in cells.items()}
    return Line(name, metric.title, metric.better, metric.digits, next(iter(cells.values()))["n"], values)


def _escaped(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return str(text).replace("|", "\\|").replace("\n", " ")
