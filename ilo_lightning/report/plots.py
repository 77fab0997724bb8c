"""Plots of the means: against whatever was swept, and against what it cost."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .settings import name_of, text_of
from .summary import COSTS, HIGHER_IS_BETTER, OPTIMISED, Mean, Summary
from .typeset import heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers; those that are too light for lines left out.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c6d31")
INK = "#262626"  # of all text and axes; the page replaces it by its own
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
PANELS, CURVES = 12, 16  # more can't be read; what is left out is said
SPREAD = 1.1  # costs that differ by less are the same
AXES = {"seconds": "seconds per image", "evaluations": "evaluations of the generator"}


@dataclass
class Curve:
    """One solver's means: ``x`` is None where it doesn't depend on what is swept."""

    method: str
    label: str
    points: list[tuple[float | None, Mean]] = field(default_factory=list)


@dataclass(frozen=True)
class Plot:
    """What is drawn: a metric against ``x``, a panel per problem.

    Args:
        name: of its files.
        panels: title to curves.
        note: what is left out.
        methods: of the whole report, whose look is the same in all plots.
    """

    name: str
    metric: str
    x: str
    x_label: str
    panels: dict[str, list[Curve]]
    note: str = ""
    methods: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        return f"{heading(self.metric, arrow=False)} against {self.x_label}"


def plots(summary: Summary) -> Iterator[Plot]:
    """For every metric, a plot per setting that was swept over numbers, and one per cost that differs."""
    methods = tuple(dict.fromkeys(str(group.settings(summary)["method"]) for group in summary.groups))
    for metric in summary.metrics:
        for x in (*summary.keys, *COSTS):
            panels = _panels(summary, metric, x)
            if panels:
                label = AXES.get(x) or name_of(x, summary.keys)
                note = []
                if len(panels) > PANELS:
                    note.append(f"the first {PANELS} of {len(panels)} problems")
                    panels = dict(list(panels.items())[:PANELS])
                most = max(map(len, panels.values()))
                if most > CURVES:
                    note.append(f"the first {CURVES} of up to {most} curves")
                    panels = {title: curves[:CURVES] for title, curves in panels.items()}
                notes = [f"Only {', '.join(note)}."] if note else []
                notes += _left_out(summary, metric)
                yield Plot(f"{metric}-against-{x}", metric, x, label, panels, " ".join(notes), methods)


def _left_out(summary: Summary, metric: str) -> list[str]:
    """Which methods have results that aren't drawn, as tables don't compare them either."""
    reasons = {
        f"whose own network this is ({OPTIMISED})": [metric in group.optimised for group in summary.groups],
        "with other or fewer images or seeds than the rest of their problem (†)": [
            not group.same_images for group in summary.groups
        ],
    }
    words = []
    for reason, marked in reasons.items():
        groups = [group for group, is_so in zip(summary.groups, marked, strict=True) if is_so and metric in group.means]
        if names := dict.fromkeys(str(group.settings(summary)["method"]) for group in groups):
            words.append(f"Not drawn: results of {', '.join(names)} {reason}.")
    return words


def _panels(summary: Summary, metric: str, x: str) -> dict[str, list[Curve]]:
    """Title to curves; only what has two places along x or, a horizontal line, compares with such a curve. What tables
    don't compare is left out."""
    costs = x in COSTS
    found: dict[str, dict[str, Curve]] = {}
    all_settings = [group.settings(summary) for group in summary.groups]
    along = {
        (str(values["method"]), _label(summary.solver_keys, {**values, x: None}, summary))
        for values in all_settings
        if not costs and _is_number(values[x])
    }
    if not costs and not any(_is_number(entry[x]) for entry in all_settings):
        return {}
    for group, values in zip(summary.groups, all_settings, strict=True):
        if metric not in group.means or (costs and x not in group.means):
            continue
        if metric in group.optimised or not group.same_images:
            continue
        place = group.means[x].value if costs else values[x]
        if not (place is None or _is_number(place)) or (place is None and x in summary.problem_keys):
            continue
        rest = {key: value for key, value in values.items() if key != x and not (costs and key == "method.steps")}
        title = _label(summary.problem_keys, rest, summary)
        label = _label(summary.solver_keys, rest, summary)
        if place is None and (str(values["method"]), label) in along:
            label += f", {name_of(x, summary.keys)} none"
        curve = found.setdefault(title, {}).setdefault(label, Curve(str(values["method"]), label))
        curve.points.append((place, group.means[metric]))
    panels: dict[str, list[Curve]] = {}
    for title, curves in found.items():
        places = {place for curve in curves.values() for place, _ in curve.points if place is not None}
        spread = costs and len(places) > 1 and max(places) >= SPREAD * min(places)
        if costs and not spread:
            continue
        if spread or any(len({p for p, _ in curve.points if p is not None}) > 1 for curve in curves.values()):
            for curve in curves.values():
                curve.points.sort(key=lambda point: math.inf if point[0] is None else point[0])
            panels[title] = list(curves.values())
    return panels


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(keys: Sequence[str], values: dict[str, Any], summary: Summary) -> str:
    """``ilo, l1 radius 0.15``: the names alone of task and method, the others with their values where they differ."""
    words = []
    for key in keys:
        if key not in values or values[key] is None:
            continue
        if key in ("task", "method"):
            words.append(text_of(values[key]).replace("_", " "))
        elif key == "protocol":
            known = list(dict.fromkeys(group.settings(summary)[key] for group in summary.groups))
            words.append(f"protocol {known.index(values[key]) + 1}")
        else:
            words.append(f"{name_of(key, summary.keys)} {text_of(values[key], key)}")
    return ", ".join(words)


def draw(plot: Plot) -> Figure:
    """A figure with a panel per problem and one legend for all."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(plot.panels) == 4 else min(len(plot.panels), 3)
    rows = math.ceil(len(plot.panels) / columns)
    styles = _styles([curve for panel in plot.panels.values() for curve in panel], plot.methods)
    width = 3.1 * columns + (0.9 if columns == 1 else 0)
    across = max(int(width / (0.6 + 0.062 * max(map(len, styles)))), 1)
    figure = Figure(figsize=(width, 2.5 * rows + 0.2 * math.ceil(len(styles) / across)), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    titles = _titles(list(plot.panels))
    for place in range(rows * columns):
        axes = grid[place // columns][place % columns]
        if place >= len(titles):
            axes.set_axis_off()
            continue
        _draw_panel(axes, plot, list(plot.panels.values())[place], styles)
        axes.set_title(titles[place], fontsize=8, color=INK)
        if place + columns >= len(titles):
            axes.set_xlabel(plot.x_label, fontsize=9, color=INK)
            axes.tick_params(labelbottom=True)
        if place % columns == 0:
            axes.set_ylabel(heading(plot.metric), fontsize=9, color=INK)
    _scale(grid[0][0], plot)
    if len(styles) > 1:
        handles = [grid[0][0].plot([], [], label=label, **style)[0] for label, style in styles.items()]
        figure.legend(
            handles=handles, loc="outside upper center", ncols=across, frameon=False, fontsize=8, labelcolor=INK
        )
    return figure


def _titles(titles: Sequence[str]) -> list[str]:
    """Without the words that all share, in lines that fit above a panel; none breaks within a setting."""
    words = [title.split(", ") for title in titles]
    shared = set.intersection(*map(set, words)) if len(titles) > 1 else set()
    kept = [", ".join(word.replace(" ", "\xa0") for word in own if word not in shared) for own in words]
    return [textwrap.fill(title, 42, break_on_hyphens=False).replace("\xa0", " ") for title in kept]


def _styles(curves: Sequence[Curve], every: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By label: a colour per method, and per variant of it a shade, a line and a marker. Where there are more methods
    than colours, those that share one differ in line and marker."""
    curves = list({curve.label: curve for curve in curves}.values())
    methods = list(dict.fromkeys([*every, *(curve.method for curve in curves)]))
    labels = {method: [curve.label for curve in curves if curve.method == method] for method in methods}
    styles: dict[str, dict[str, Any]] = {}
    for curve in curves:
        variants = labels[curve.method]
        variant = variants.index(curve.label)
        again, colour = divmod(methods.index(curve.method), len(COLOURS))
        styles[curve.label] = {
            "color": _lighter(COLOURS[colour], 0.55 * variant / len(variants)),
            "linestyle": LINES[(variant + again) % len(LINES)],
            "marker": MARKERS[(colour + variant + again) % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.4,
        }
    return styles


def _lighter(colour: str, part: float) -> str:
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(value + (255 - value) * part):02x}" for value in channels)


def _draw_panel(axes: Axes, plot: Plot, curves: Sequence[Curve], styles: dict[str, dict[str, Any]]) -> None:
    for curve in curves:
        style = styles[curve.label]
        level = [(place, mean) for place, mean in curve.points if place is None]
        along = [(place, mean) for place, mean in curve.points if place is not None]
        for _, mean in level:
            half = mean.half or 0.0
            axes.axhline(mean.value, **{**style, "marker": ""})
            axes.axhspan(mean.value - half, mean.value + half, color=style["color"], alpha=0.12, linewidth=0)
        if not along:
            continue
        xs = [place for place, _ in along]
        means = [mean.value for _, mean in along]
        halves = [mean.half or 0.0 for _, mean in along]
        axes.plot(xs, means, **style)
        if plot.x in COSTS:
            axes.errorbar(xs, means, halves, fmt="none", ecolor=style["color"], elinewidth=1, capsize=2, alpha=0.6)
        else:
            low = [mean - half for mean, half in zip(means, halves, strict=True)]
            high = [mean + half for mean, half in zip(means, halves, strict=True)]
            axes.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.grid(True, color=INK, alpha=0.12, linewidth=0.6)
    axes.tick_params(which="both", colors=INK, labelsize=8)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(INK)


def _scale(axes: Axes, plot: Plot) -> None:
    """Scales and ticks, shared by all panels: the swept values themselves where they are few."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    points = [point for panel in plot.panels.values() for curve in panel for point in curve.points]
    places = sorted({place for place, _ in points if place is not None})
    if places[0] > 0 and places[-1] / places[0] >= 5:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if plot.x not in COSTS and len(places) <= 7:
        axes.xaxis.set_major_locator(FixedLocator(places))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    lows = [mean.value - (mean.half or 0) for _, mean in points]
    highs = [mean.value + (mean.half or 0) for _, mean in points]
    if plot.metric not in HIGHER_IS_BETTER and min(lows) > 0 and max(highs) / min(lows) > 10:
        axes.set_yscale("log")


def rendered(figure: Figure, form: str) -> bytes:
    """The figure as ``png`` or ``svg``; the same figure gives the same bytes."""
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "ilo-lightning", "svg.fonttype": "path"}):
        figure.savefig(buffer, format=form, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()
