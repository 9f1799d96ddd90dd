"""Plots of a report as SVG: lines, ROC and histograms. matplotlib is imported when the first one is drawn."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from raygen.report.svg import INK, plain, plot_settings, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

__all__ = [
    "COLOURS",
    "AxisRange",
    "DataPoint",
    "RocCurve",
    "Series",
    "axis_range",
    "histogram_plot",
    "line_plot",
    "roc_plot",
]


#: Colours of series; each has a contrast of at least 3 with light and with dark paper.
COLOURS: Final = ("#1a8a7c", "#c8642a", "#4f7fc4", "#a366b8", "#84817a", "#8f8526", "#4f9440", "#cf5a86")
GREY: Final = "#84817a"
#: Dashes and markers differ too, so that series can be told apart without colour and where one covers another.
DASHES: Final = ("-", (0, (6, 3)), (0, (1.5, 2)), (0, (8, 2.5, 1.5, 2.5)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "d")
#: Size of a plot in CSS pixels; a histogram has less height.
WIDTH, HEIGHT, LOW_HEIGHT = 560, 350, 240
#: An axis whose ends are this many times apart is logarithmic.
LOG_RATIO: Final = 6.0
MAX_TICKS: Final = 7


class DataPoint(NamedTuple):
    """A point, its interval and its tooltip."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    tooltip: str = ""


class Series(NamedTuple):
    """A named line."""

    name: str
    points: Sequence[DataPoint]


class RocCurve(NamedTuple):
    """A named ROC: false and true accept rates, and labelled points (label, FAR, TAR)."""

    name: str
    far: Sequence[float]
    tar: Sequence[float]
    marks: Sequence[tuple[str, float, float]]


class AxisRange(NamedTuple):
    """Ends and ticks of an axis."""

    low: float
    high: float
    ticks: Sequence[float]
    log: bool


def axis_range(values: Sequence[float], *, log: bool = False) -> AxisRange:
    """An axis with all values on it, and at most `MAX_TICKS` + 1 round ticks.

    Logarithmic where `log` asks for it or the values lie far apart, and all are positive.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    log = low > 0 and (log or high / low > LOG_RATIO)
    scale: Callable[[float], float] = math.log if log else float
    pad = 0.06 * (scale(high) - scale(low)) or (0.1 if log else 0.1 * abs(high) or 1.0)
    low, high = scale(low) - pad, scale(high) + pad
    low, high = (math.exp(low), math.exp(high)) if log else (low, high)
    if log and high / low > MAX_TICKS:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        ticks = ticks[:: math.ceil(len(ticks) / MAX_TICKS)]
    else:
        locator = MaxNLocator(MAX_TICKS - 1, steps=[1, 2, 2.5, 5, 10])
        ticks = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
    return AxisRange(low, high, ticks, log)


def line_plot(
    series: Sequence[Series],
    *,
    name: str,
    title: str,
    xlabel: str,
    log_x: bool = False,
    log_y: bool = False,
    y_range: tuple[float, float] | None = None,
    markers: bool = True,
    standalone: bool = False,
) -> str:
    """SVG of lines with their intervals; empty where there is no point.

    `name` starts the ids of the SVG and must be its own on a page. `markers` draws every point, with its tooltip.
    """
    xs = [point.x for line in series for point in line.points]
    if not xs:
        return ""
    ys = [y for line in series for p in line.points for y in (p.y, p.low, p.high) if y is not None]
    across = axis_range(xs, log=log_x)
    up = axis_range(ys, log=log_y)
    if y_range is not None:
        margin = 0.03 * (y_range[1] - y_range[0])
        low, high = min(y_range[0] - margin, *ys), max(y_range[1] + margin, *ys)
        up = up._replace(low=low, high=high, ticks=axis_range(y_range).ticks, log=False)
    if log_x and len(set(xs)) <= MAX_TICKS and all(x == int(x) for x in xs):
        across = across._replace(ticks=sorted(set(xs)))
    with plot_settings():
        from matplotlib.lines import Line2D

        figure, axes = _figure(title, xlabel, across, up, HEIGHT)
        handles: list[Line2D] = []
        tooltips: dict[str, str] = {}
        for i, line in enumerate(series):
            style = _style(i)
            marker = MARKERS[i % len(MARKERS)] if markers else ""
            handles.append(Line2D([], [], marker=marker, **style))
            axes.plot([point.x for point in line.points], [point.y for point in line.points], **style)
            for j, point in enumerate(line.points if markers else ()):
                if point.low is not None and point.high is not None:
                    axes.vlines(point.x, point.low, point.high, color=style["color"], linewidth=1.4, alpha=0.5)
                tooltips[f"point-{i}-{j}"] = point.tooltip or f"{line.name}: {point.y:.4g} at {point.x:g}"
                axes.plot([point.x], [point.y], marker, color=style["color"], gid=f"point-{i}-{j}")
        if len(series) > 1:
            _legend(figure, handles, [line.name for line in series])
        label = f"{title}: " + "; ".join(f"{line.name} ends at {line.points[-1].y:.4g}" for line in series)
        return to_svg(figure, name=name, label=label, tooltips=tooltips, standalone=standalone)


def roc_plot(curves: Sequence[RocCurve], min_far: float, *, name: str) -> str:
    """SVG of TAR over FAR from the power of ten at or below `min_far` to 1; empty without curves.

    The marks of every curve have a tooltip; those of the first one have their label beside them.
    """
    if not curves:
        return ""
    power = min(math.floor(math.log10(max(min_far, 1e-9))), -1)
    low = 10.0**power
    across = AxisRange(low, 1.0, [10.0**p for p in range(power, 1)], log=True)
    up = AxisRange(-0.02, 1.02, (0, 0.2, 0.4, 0.6, 0.8, 1), log=False)
    with plot_settings():
        xlabel = "false accept rate (FAR): share of impostor pairs that are accepted"
        figure, axes = _figure("ROC: true accept rate (TAR) over FAR", xlabel, across, up, HEIGHT)
        axes.grid(axis="x", color=GREY, alpha=0.3, linewidth=0.8)
        handles: list[Line2D] = []
        tooltips: dict[str, str] = {}
        for i, curve in enumerate(curves):
            inside = [(max(far, low), tar) for far, tar in zip(curve.far, curve.tar, strict=True)]
            # Points left of the axis lie on its end: only the first of them belongs to the line.
            inside = [inside[0], *(b for a, b in pairwise(inside) if a[0] > low)] if inside else []
            style = _style(i)
            handles += axes.plot([x for x, _ in inside], [y for _, y in inside], **style)
            for j, (label, far, tar) in enumerate(curve.marks):
                tooltips[f"mark-{i}-{j}"] = f"{curve.name}: {label}"
                marker = MARKERS[i % len(MARKERS)]
                axes.plot([max(far, low)], [tar], marker, color=style["color"], gid=f"mark-{i}-{j}")
                if i == 0:
                    left = far > 10 ** (power / 3)
                    axes.annotate(
                        plain(label),
                        (max(far, low), tar),
                        xytext=(-8 if left else 8, -14),
                        textcoords="offset pixels",
                        horizontalalignment="right" if left else "left",
                        fontsize=11,
                    )
        chance = [10 ** (power * i / 60) for i in range(61)]
        handles += axes.plot(chance, chance, color=GREY, linewidth=1.2, linestyle=(0, (3, 3)))
        _legend(figure, handles, [*(curve.name for curve in curves), "chance"])
        label = "ROC. " + "; ".join(f"{curve.name}: {', '.join(m[0] for m in curve.marks)}" for curve in curves)
        return to_svg(figure, name=name, label=label, tooltips=tooltips)


def histogram_plot(
    counts: Mapping[str, Sequence[float]],
    ends: tuple[float, float],
    *,
    name: str,
    title: str,
    xlabel: str,
    ylabel: str,
    mean: float | None = None,
) -> str:
    """SVG of one or two histograms over bins of equal width between `ends`; `mean` is marked by a line.

    Of a single histogram each bar has a tooltip.
    """
    top = max((max(values) for values in counts.values()), default=0) or 1
    slack = 1e-9 * (ends[1] - ends[0])
    ticks = [tick for tick in axis_range(ends).ticks if ends[0] - slack <= tick <= ends[1] + slack]
    across = AxisRange(*ends, ticks, log=False)
    up = AxisRange(0, 1.1 * top, [tick for tick in axis_range((0, top)).ticks if 0 <= tick <= 1.1 * top], log=False)
    with plot_settings():
        figure, axes = _figure(title, xlabel, across, up, LOW_HEIGHT)
        axes.set_ylabel(ylabel)
        handles: list[Line2D] = []
        tooltips: dict[str, str] = {}
        for i, values in enumerate(counts.values()):
            colour, width = COLOURS[i % len(COLOURS)], (ends[1] - ends[0]) / len(values)
            edges = [ends[0] + width * j for j in range(len(values) + 1)]
            if len(counts) == 1:
                for j, value in enumerate(values):
                    if value:
                        tooltips[f"bar-{j}"] = f"{edges[j]:.3f} to {edges[j + 1]:.3f}: {value:,g}"
                        axes.bar(edges[j], value, 0.9 * width, align="edge", color=colour, gid=f"bar-{j}")
            else:
                axes.stairs(values, edges, fill=True, color=colour, alpha=0.3)
                outline = [0.0, *values, 0.0]
                handles += axes.plot([edges[0], *edges], outline, drawstyle="steps-post", **_style(i))
        if mean is not None:
            axes.axvline(mean, color=INK, linewidth=1.2, linestyle=(0, (6, 3)))
            near_end = mean > (ends[0] + ends[1]) / 2
            axes.annotate(
                f"mean {mean:.3f}",
                (mean, 1.1 * top),
                xytext=(-6 if near_end else 6, -12),
                textcoords="offset pixels",
                horizontalalignment="right" if near_end else "left",
                fontsize=11,
            )
        if len(counts) > 1:
            _legend(figure, handles, list(counts))
        return to_svg(figure, name=name, label=f"{title}, from {ends[0]:.2g} to {ends[1]:.2g}", tooltips=tooltips)


def _figure(title: str, xlabel: str, across: AxisRange, up: AxisRange, height: int) -> tuple["Figure", "Axes"]:
    """A figure without pyplot, so that no window system is ever asked for."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout="constrained")
    axes = figure.add_subplot(facecolor="none")
    axes.set_title(plain(title), loc="left", fontsize=12, fontweight="bold")
    axes.set_xlabel(xlabel)
    axes.set_xscale("log" if across.log else "linear")
    axes.set_yscale("log" if up.log else "linear")
    axes.set(xlim=(across.low, across.high), ylim=(up.low, up.high))
    for axis, ends in ((axes.xaxis, across), (axes.yaxis, up)):
        axis.set_major_locator(FixedLocator(list(ends.ticks)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.tick_params(length=4, width=0.8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", color=GREY, alpha=0.3, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=GREY, linewidth=0.8)
    return figure, axes


def _style(number: int) -> dict[str, Any]:
    """Colour, dashes and width of the series of that number."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": DASHES[number % len(DASHES)], "linewidth": 1.8}


def _legend(figure: "Figure", handles: "Sequence[Line2D]", names: Sequence[str]) -> None:
    """Names below the plot, two in a row where they are short."""
    columns = 2 if max(map(len, names)) < 36 else 1
    legend = figure.legend(
        handles,
        [f"{i}" for i in range(len(names))],
        loc="outside lower left",
        ncols=columns,
        frameon=False,
        handlelength=3.2,
        labelcolor=INK,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(plain(name))  # as a label, a name that begins with _ would be left out
