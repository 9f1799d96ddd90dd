"""A plot of lines as SVG: a number over steps, or over seconds a picture; and what verification accepts (ROC).

Knows where points lie in a drawing of fixed size. Knows no colours of a page: lines have the classes c0, c1, …, which a
style sheet paints; a drawing that stands alone brings its own.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from typing import Final, Literal, NamedTuple

from raygen.evaluation.comparison import Curve, Point
from raygen.metrics.registry import better

__all__ = ["Roc", "plot", "roc"]


Over = Literal["steps", "seconds"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 560, 330, 62, 14, 34, 44
#: Of a row of the legend, which has two columns.
ROW: Final = 18
#: An axis whose ends are this many times apart is logarithmic.
WIDE: Final = 6.0
#: Ticks that an axis has room for.
MOST: Final = 7
WORDS: Final[Mapping[Over, str]] = {"steps": "steps", "seconds": "seconds a picture"}
COLOURS: Final = ("#14695f", "#b4501e", "#4a6fb5", "#8a4b9e", "#67635a", "#b08a1e", "#3b8f3b", "#c0392b")
#: Dashes of the lines in turn, so that one that lies on another does not hide it, and without colours they differ too.
DASHES: Final = ("none", "7 4", "2 3", "10 3 2 3")
#: Style of a drawing that stands alone.
ALONE: Final = (
    "svg{background:#fff}",
    "text{font:12px system-ui,sans-serif;fill:#67635a}",
    ".title{font-weight:600;fill:#1e1d1a}",
    ".rule{stroke:#e4e0d7;fill:none}",
    ".line{fill:none;stroke-width:2}",
    ".thin{stroke-width:1.2;stroke-opacity:.4}",
    *(f".line.c{i}{{stroke:{colour}}}.dot.c{i}{{fill:{colour}}}" for i, colour in enumerate(COLOURS)),
)


class Roc(NamedTuple):
    """A line of a ROC: what it is of, shares of impostors and of genuine pairs that are accepted, and named points."""

    name: str
    far: Sequence[float]
    tar: Sequence[float]
    marks: Sequence[tuple[str, float, float]]


def plot(found: Sequence[Curve], metric: str, *, over: Over = "steps", alone: bool = False) -> str:
    """SVG of the lines over steps or seconds, with their intervals; empty where nothing can be drawn."""
    place = _steps if over == "steps" else _seconds
    lines = [(curve.name, [(x, p) for p in curve.points if (x := place(p)) is not None]) for curve in found]
    xs = [x for _, points in lines for x, _ in points]
    if not xs:
        return ""
    ys = [v for _, points in lines for _, p in points for v in (p.value, p.low, p.high) if v is not None]
    across, up = Axis(xs, LEFT, WIDTH - RIGHT, log=True), Axis(ys, HEIGHT - BOTTOM, TOP)
    marks = sorted(set(xs)) if over == "steps" and len(set(xs)) <= MOST else across.ticks()
    parts = [
        *_frame(metric, over, len(lines), alone),
        *_grid(across, up, marks),
        *(part for i, (name, points) in enumerate(lines) for part in _line(i, name, points, across, up)),
        "</svg>",
    ]
    return "".join(parts)


class Axis:
    """Numbers to a length between `start` and `end`; logarithmic where they are far apart."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool = False) -> None:
        """`log` wants it logarithmic even where they are not; numbers that are not positive never are."""
        low, high = min(values), max(values)
        self.log = low > 0 and (log or high / low > WIDE)
        self.low, self.high = (math.log(low), math.log(high)) if self.log else (low, high)
        pad = 0.06 * (self.high - self.low) or 0.1 * abs(self.high) or 1.0
        self.low, self.high, self.start, self.end = self.low - pad, self.high + pad, start, end

    def __call__(self, value: float) -> float:
        """Where it lies."""
        at = math.log(value) if self.log else value
        return self.start + (at - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers on the axis."""
        if self.log and self.high - self.low > math.log(MOST):
            low, high = math.exp(self.low), math.exp(self.high)
            powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            found = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
            return found[:: math.ceil(len(found) / MOST)] if len(found) > MOST else found
        low, high = (math.exp(self.low), math.exp(self.high)) if self.log else (self.low, self.high)
        rough = (high - low) / MOST
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= rough)
        return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _steps(point: Point) -> float | None:
    return float(point.steps)


def _seconds(point: Point) -> float | None:
    return point.seconds


def _frame(metric: str, over: Over, lines: int, alone: bool) -> Iterator[str]:
    height = HEIGHT + ROW * math.ceil(lines / 2) + 8
    label = f"{escape(metric)} over {WORDS[over]}"
    yield f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {height}" role="img"'
    yield f' aria-label="{label}, {lines} lines">'
    yield f"<style>{''.join(ALONE)}</style>" if alone else ""
    yield _text(LEFT, 16, f"{metric} over {WORDS[over]}; {better(metric)} is better", "title")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, WORDS[over], anchor="middle")


def _grid(across: Axis, up: Axis, marks: Sequence[float]) -> Iterator[str]:
    for tick in up.ticks():
        yield f'<path class="rule" d="M{LEFT} {up(tick):.1f}H{WIDTH - RIGHT}"/>'
        yield _text(LEFT - 8, up(tick) + 4, f"{tick:.4g}", anchor="end")
    for tick in marks:
        yield f'<path class="rule" d="M{across(tick):.1f} {HEIGHT - BOTTOM}v5"/>'
        yield _text(across(tick), HEIGHT - BOTTOM + 20, f"{tick:.4g}", anchor="middle")


def _line(
    number: int, name: str, points: Sequence[tuple[float, Point]], across: Callable[[float], float], up: Axis
) -> Iterator[str]:
    """The line, its intervals and points, and its row of the legend."""
    colour = f"c{number % len(COLOURS)}"
    path = "L".join(f"{across(x):.1f} {up(p.value):.1f}" for x, p in points)
    style = f'class="line {colour}" stroke-dasharray="{DASHES[number % len(DASHES)]}"'
    yield f'<path {style} d="M{path}"/>'
    for x, p in points:
        if p.low is not None and p.high is not None:
            yield f'<path class="line thin {colour}" d="M{across(x):.1f} {up(p.low):.1f}V{up(p.high):.1f}"/>'
        said = escape(f"{name}, {p.steps} steps: {p.value:.4g} (n = {p.n:,})")
        yield f'<circle class="dot {colour}" cx="{across(x):.1f}" cy="{up(p.value):.1f}" r="3.2">'
        yield f"<title>{said}</title></circle>"
    left, row = _legend(number)
    yield f'<path {style} d="M{left} {row - 4}h26"/>'
    yield _text(left + 33, row, name)


def roc(found: Sequence[Roc], lowest: float) -> str:
    """SVG of TAR over FAR from `lowest` to 1, which is logarithmic, and of chance; empty where there are no lines."""
    if not found:
        return ""
    low = min(math.floor(math.log10(max(lowest, 1e-9))), -1)

    def across(far: float) -> float:
        return LEFT + (1 - math.log10(max(far, 10.0**low)) / low) * (WIDTH - RIGHT - LEFT)

    def up(tar: float) -> float:
        return HEIGHT - BOTTOM - tar * (HEIGHT - BOTTOM - TOP)

    height = HEIGHT + ROW * math.ceil((len(found) + 1) / 2) + 8
    said = "; ".join(f"{one.name}: {', '.join(name for name, *_ in one.marks)}" for one in found)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" viewBox="0 0 {WIDTH} {height}" role="img"'
    parts = [f'{head} aria-label="{escape(f"ROC. {said}")}">', _text(LEFT, 16, "TAR over FAR (ROC)", "title")]
    for tar in (0, 0.2, 0.4, 0.6, 0.8, 1):
        parts.append(f'<path class="rule" d="M{LEFT} {up(tar):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(_text(LEFT - 8, up(tar) + 4, f"{tar:g}", anchor="end"))
    for power in range(low, 1):
        x = across(10.0**power)
        parts.append(f'<path class="rule" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM + 5}"/>')
        parts.append(_text(x, HEIGHT - BOTTOM + 20, f"{10.0**power:g}", anchor="middle"))
    words = "share of pairs of two people that are accepted (FAR)"
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, words, anchor="middle"))
    chance = [10 ** (low * i / 60) for i in range(61)]
    parts.append(f'<path class="line thin c2" d="M{"L".join(f"{across(x):.1f} {up(x):.1f}" for x in chance)}"/>')
    parts += (part for i, one in enumerate(found) for part in _roc_line(i, one, across, up, 10.0**low))
    left, row = _legend(len(found))
    parts += [f'<path class="line thin c2" d="M{left} {row - 4}h26"/>', _text(left + 33, row, "chance"), "</svg>"]
    return "".join(parts)


def _roc_line(
    number: int, one: Roc, across: Callable[[float], float], up: Callable[[float], float], lowest: float
) -> Iterator[str]:
    """The line as far as the axis goes, its named points, and its row of the legend."""
    colour, points, last = f"c{number % len(COLOURS)}", [], (math.inf, math.inf)
    for far, tar in zip(one.far, one.tar, strict=True):
        here = across(far), up(tar)
        if max(abs(here[0] - last[0]), abs(here[1] - last[1])) >= 0.7:  # thresholds lie far closer than can be drawn
            points.append(f"{here[0]:.1f} {here[1]:.1f}")
            last = here
        if far < lowest:
            break
    style = f'class="line {colour}" stroke-dasharray="{DASHES[number % len(DASHES)]}"'
    yield f'<path {style} d="M{"L".join(points)}"/>'
    for name, far, tar in one.marks:
        yield f'<circle class="dot {colour}" cx="{across(far):.1f}" cy="{up(tar):.1f}" r="4">'
        yield f"<title>{escape(f'{one.name}: {name}')}</title></circle>"
        room = across(far) < WIDTH - RIGHT - 130
        if number == 0:  # lines of two sets often lie so close that there is no room for the words of both
            yield _text(across(far) + (8 if room else -8), up(tar) + 16, name, "small", "start" if room else "end")
    left, row = _legend(number)
    yield f'<path {style} d="M{left} {row - 4}h26"/>'
    yield _text(left + 33, row, one.name)


def _legend(number: int) -> tuple[float, float]:
    """Where the row of a line is, two to a row."""
    return LEFT + (number % 2) * (WIDTH - LEFT) / 2, HEIGHT + 16 + ROW * (number // 2)


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
