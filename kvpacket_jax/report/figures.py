"""Figures of F1 against costs, and of costs, as SVG. A method has its marker: grey print reads."""

import collections
import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from kvpacket_jax.report.results import Point, Series, label, lines, pareto
from kvpacket_jax.runtime.format import si

# method, or other line -> colour (Okabe and Ito's, which the colour-blind tell apart), marker, line
STYLES = {
    "full_recompute": ("#000000", "*", "-"),
    "kv_packet": ("#D55E00", "o", "-"),
    "no_recompute": ("#666666", "X", "-"),
    "no_cache": ("#999999", "P", "-"),
    "cache_blend": ("#0072B2", "s", "--"),
    "epic": ("#009E73", "^", "-."),
    "a3": ("#AA4499", "D", ":"),
    "rand_recompute": ("#E69F00", "v", (0, (5, 1, 1, 1, 1, 1))),
    "sam_kv": ("#56B4E9", "p", "--"),
    "infoflow": ("#332288", "h", "-."),
    "single_cache": ("#882255", "<", "-"),
    "sink": ("#44AA99", ">", ":"),
    "query alone": ("#777777", "x", "--"),
    "floor": ("#BBBBBB", "", "-"),
}
# Compressed packets are all kv_packet's: they borrow the looks of methods seldom shown beside them.
COMPRESSORS = {
    "knorm": STYLES["cache_blend"],
    "streaming": STYLES["epic"],
    "snapkv": STYLES["a3"],
    "zeromerge": STYLES["rand_recompute"],
    "expected_attention": STYLES["sam_kv"],
    "kvzip": STYLES["infoflow"],
    "kv_distill": STYLES["single_cache"],
}
OTHERS = [(c, m, "-") for c in ("#444444", "#777777") for m in "d8H123"]
LARGE = {"full_recompute": 11, "kv_packet": 8}  # markers; the rest are smaller
FILLS = ("full", "none", "top", "bottom", "left", "right")
SIZE = (4.8, 4.6)  # inches: one column of the page
WIDE = (7.2, 3.6)
TICKS = 6


def tradeoff(
    points: Sequence[Point], axis: str, note: str, unit: float = 1.0, score: str = "F1"
) -> str:
    """F1 against a cost, one point a setting, with intervals and the Pareto front: SVG.

    Args:
      axis: what x is, with its unit.
      note: below the figure: machine, date.
      unit: of the axis, in units of x: 1e-3 for seconds shown in milliseconds.
      score: what y is.
    """
    points = _in_units(points, unit)
    figure, axes = _figure(axis, note, score)
    _draw_lines(axes, lines(points))
    _scale(axes, _reach(points))
    front = pareto(points)
    xs, ys = [p.x for p in front] + [axes.get_xlim()[1]], [p.f1 for p in [*front, front[-1]]]
    axes.step(xs, ys, where="post", color="#CCCCCC", lw=5, zorder=1, label="Pareto front")
    return _finish(figure, axes)


def by_option(series: Series) -> str:
    """F1 by the number or the length of documents, a line a method and setting: SVG."""
    figure, axes = _figure(series.axis, f"{series.title}\n{series.conditions}")
    settings = _by_setting(series.points)
    xs = sorted({p.x for p in series.points})
    step = (xs[-1] - xs[0]) * 0.006
    apart = []
    for i, line in enumerate(settings):  # a little, or the intervals hide each other
        shift = step * (i - (len(settings) - 1) / 2)
        apart.append([p._replace(x=p.x + shift) for p in line])
    _draw_lines(axes, apart)
    axes.xaxis.set_major_locator(FixedLocator(xs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    return _finish(figure, axes)


def by_time(series: Series) -> str:
    """F1 against milliseconds to the first token, a line a method and setting: SVG.

    A line goes through the numbers or lengths of documents.
    """
    axis = f"TTFT, ms; lines go through {series.axis}"
    figure, axes = _figure(axis, f"{series.title}\n{series.conditions}")
    points = _in_units(series.times, 1e-3)
    _draw_lines(axes, _by_setting(points))
    _scale(axes, _reach(points))
    return _finish(figure, axes)


def by_number(
    series: Mapping[str, Sequence[tuple[float, float]]], axis: str, score: str, note: str
) -> str:
    """A score by a number, the sets that training runs have learned from, say: a line each, SVG.

    Args:
      series: (number, score) by a line's name.
      axis, score: what x and y are.
      note: below the figure.
    """
    figure, axes = _figure(axis, note, score)
    _plot(axes, series, [look for look in STYLES.values() if look[1]] + OTHERS)
    highest = max(y for points in series.values() for _, y in points)
    axes.set_ylim(0, max(1.0, 1.05 * highest) if highest <= 1 else 1.05 * highest)
    return _finish(figure, axes)


def by_kind(
    kinds: Mapping[str, Mapping[str, float]],
    looks: Mapping[str, tuple[str, str, str]],
    axis: str,
    note: str,
) -> str:
    """Shares of several ways, a row a kind, the first kind uppermost: SVG.

    Args:
      kinds: a share by a way's name, by a kind's.
      looks: colour, marker and fill by a way's name; where markers meet, the last lies on top.
      axis: what x is.
      note: below the figure.
    """
    figure, axes = _figure(axis, note, "", WIDE)
    names = list(kinds)
    for way, (color, marker, fill) in looks.items():
        shares = [kinds[name].get(way, math.nan) for name in names]
        if not all(map(math.isnan, shares)):
            look = dict(color=color, marker=marker, fillstyle=fill, markersize=8, ls="")
            axes.plot(shares, range(len(names)), label=way, **look)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0%}"))
    return _finish(figure, axes)


def by_tokens(series: Mapping[str, Sequence[tuple[float, float]]], note: str) -> str:
    """Seconds to the first token by cached tokens, a line a method, both logarithmic: SVG.

    Args:
      series: (tokens, seconds) by a method's spec, or by what else there is a line of.
      note: below the figure.
    """
    figure, axes = _figure("cached tokens", note, "TTFT, seconds")
    _plot(axes, series)
    seconds = [s for points in series.values() for _, s in points]
    axes.set(xscale="log", ylim=(min(seconds) / 1.3, max(seconds) * 1.3), yscale="log")
    xs = sorted({x for points in series.values() for x, _ in points})
    axes.xaxis.set_major_locator(FixedLocator(xs))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    return _finish(figure, axes)


def _in_units(points: Sequence[Point], unit: float) -> list[Point]:
    """Points whose x, and its range, are in units of `unit`."""
    ends = ("x", "x_low", "x_high")
    return [
        p._replace(**{k: v / unit for k in ends if (v := getattr(p, k)) is not None})
        for p in points
    ]


def _by_setting(points: Sequence[Point]) -> list[list[Point]]:
    """The points of each method and setting."""
    found: dict[tuple[str, str], list[Point]] = {}
    for p in points:
        found.setdefault((p.method, p.setting), []).append(p)
    return list(found.values())


def _draw_lines(axes: plt.Axes, lines: Sequence[Sequence[Point]]) -> None:
    """Lines of points; fills tell those of a method apart."""
    drawn: collections.Counter = collections.Counter()
    for line in lines:
        _draw(axes, line, drawn[line[0].method])
        drawn[line[0].method] += 1


def _figure(
    axis: str, note: str, score: str = "F1", size: tuple[float, float] = SIZE
) -> tuple[Figure, plt.Axes]:
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    wrapped = "\n".join(t for line in note.split("\n") for t in textwrap.wrap(line, 86))
    axes.set(xlabel=axis, ylabel=score, ylim=(-0.02, 1.02))
    figure.supxlabel(wrapped, fontsize=7, color="#444444")
    axes.grid(color="#EEEEEE", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _plot(
    axes: plt.Axes,
    series: Mapping[str, Sequence[tuple[float, float]]],
    looks: Sequence[tuple] = (),
) -> None:
    """A line for each of the series; fills tell the settings of a method apart.

    Args:
      looks: of those that are no method of STYLES, in turn; by their names if there are none.
    """
    drawn: collections.Counter = collections.Counter()
    for i, (name, points) in enumerate(series.items()):
        method, _, setting = name.partition(":")
        own = looks and method not in STYLES
        color, marker, dashes = looks[i % len(looks)] if own else _style(method, setting)
        fill = FILLS[drawn[method] % len(FILLS)]
        xs, ys = zip(*points, strict=True)
        axes.plot(xs, ys, color=color, marker=marker, ls=dashes, lw=1.2, fillstyle=fill, label=name)
        drawn[method] += 1


def _draw(axes: plt.Axes, line: Sequence[Point], variant: int) -> None:
    """One line; `variant` tells those of one method apart."""
    first = line[0]
    color, marker, dashes = _style(first.method, first.setting)
    spread = [_errors([(p.x, p.x_low, p.x_high) for p in line])]
    spread += [_errors([(p.f1, p.f1_low, p.f1_high) for p in line])]
    axes.errorbar(
        [p.x for p in line],
        [p.f1 for p in line],
        xerr=spread[0],
        yerr=spread[1],
        color=color,
        marker=marker,
        ls=dashes,
        lw=1.2,
        elinewidth=0.8,
        markersize=LARGE.get(first.method, 6),
        markeredgecolor=color if variant else "white",
        markeredgewidth=1.0 if variant else 0.5,
        markerfacecoloralt="white",
        fillstyle=FILLS[variant % len(FILLS)],
        label=label(line),
        zorder=4 if first.method in LARGE else 3,
    )


def _style(method: str, setting: str = "") -> tuple:
    compressor = re.search(r"compress=(\w+)", setting)
    if compressor and compressor[1] in COMPRESSORS:
        return COMPRESSORS[compressor[1]]
    return STYLES.get(method) or OTHERS[sum(map(ord, method)) % len(OTHERS)]


def _errors(values: Sequence[tuple]) -> list[list[float]]:
    # Resampled, an interval can end a rounding error inside its mean: no length is negative.
    low = [0.0 if lo is None else max(0.0, x - lo) for x, lo, _ in values]
    high = [0.0 if hi is None else max(0.0, hi - x) for x, _, hi in values]
    return [low, high]


def _reach(points: Sequence[Point]) -> list[float]:
    """All x that are drawn, those of intervals too."""
    return [x for p in points for x in (p.x, p.x_low, p.x_high) if x is not None]


def _scale(axes: plt.Axes, xs: Sequence[float]) -> None:
    """Logarithmic where the numbers span much, with 0 (and below) in a linear part at its left."""
    least = min((abs(x) for x in xs if x), default=1.0)
    most, lowest = max(map(abs, xs)) or 1.0, min(xs)
    linear = 10.0 ** math.floor(math.log10(least))
    if most / least < 8:
        low = min(0.0, lowest)
        axes.set_xlim(low - 0.05 * (most - low), most * 1.05)
        axes.xaxis.set_major_formatter(FuncFormatter(_tick))
        return
    if lowest > 0:
        axes.set_xscale("log")
        axes.set_xlim(least / 1.3, most * 1.3)
        ticks = _log_ticks(least / 1.3, most * 1.3)
    else:
        axes.set_xscale("symlog", linthresh=linear, linscale=0.5)
        below = 10.0 ** math.floor(math.log10(max(linear, -lowest)))  # one tick is enough there
        ticks = [0.0, *_log_ticks(linear, most * 1.3)]
        ticks = [-below, *ticks] if lowest < 0 else ticks
        axes.set_xlim(lowest * 1.5 if lowest < 0 else -linear / 2, most * 1.5)
        axes.axvline(0, color="#BBBBBB", lw=0.8, zorder=0)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))


def _log_ticks(low: float, high: float) -> list[float]:
    """At most TICKS round numbers, evenly apart on a logarithmic axis."""
    span = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3)):
        ticks = [s * 10.0**d for d in span for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) <= TICKS:
            return ticks
    decades = [10.0**d for d in span if low <= 10.0**d <= high]
    return decades[:: math.ceil(len(decades) / TICKS)]


def _tick(value: float, _) -> str:
    return "0" if value == 0 else si(value)


def _finish(figure: Figure, axes: plt.Axes) -> str:
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, labels)) < 16 else 2
    figure.legend(
        handles, labels, loc="outside upper center", ncols=columns, frameon=False, fontsize=8
    )
    file = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "figure"}):  # the same figure, the same bytes
        figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)
    return file.getvalue()
