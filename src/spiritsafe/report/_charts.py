"""Plots as inline SVG. Text stays text and colours are CSS variables: one picture serves light, dark and print."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["days_plot", "interval_plot", "loss_plot"]

# matplotlib only takes real colours: these stand-ins become variables in the finished SVG.
_INK, _MUTED, _GRID, _ACCENT, _TEACHER, _PANEL = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
_VARIABLES = {
    _PANEL: "--panel",
    _INK: "--ink",
    _MUTED: "--muted",
    _GRID: "--rule",
    _ACCENT: "--accent",
    _TEACHER: "--teacher",
}

# Inches at 72 px: one drawing for desks, one for phones, so that text keeps its size.
_FULL, _HERO, _NARROW = 13.6, 7.8, 4.6
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def loss_plot(steps: Sequence[float], losses: Sequence[float]) -> Markup:
    """Training loss by step: every step faint, a running mean on top. Needs two points."""

    def draw(axes: Axes) -> None:
        axes.plot(steps, losses, color=_ACCENT, alpha=0.28, linewidth=1)
        axes.plot(steps, _smooth(losses), color=_ACCENT, linewidth=2.2, solid_capstyle="round")
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats per token")
        axes.set_xlim(steps[0], steps[-1])
        low, high = min(losses), max(losses)
        axes.set_ylim(max(0.0, low - 0.12 * (high - low or 1)), high + 0.08 * (high - low or 1))
        axes.grid(axis="y", color=_GRID, linewidth=0.8)

    label = f"Training loss from {losses[0]:.2f} at the first step to {losses[-1]:.2f} at the last"
    return _both_widths("loss", label, (_FULL, 3.9), _alone(draw))


def interval_plot(value: float, ci: tuple[float, float], untrained: float | None) -> Markup:
    """Where the student stands between its untrained self (0 %) and its teacher (100 %), with the 95 % interval."""
    points = [value, *ci, *([] if untrained is None else [untrained])]
    low, high = min(0.0, *points), max(1.0, *points)

    def draw(axes: Axes) -> None:
        axes.barh([0], [value], height=0.5, color=_ACCENT, alpha=0.9)
        axes.plot(ci, [0, 0], color=_INK, linewidth=1.6, solid_capstyle="butt")
        for end in ci:
            axes.plot([end, end], [-0.13, 0.13], color=_INK, linewidth=1.6)
        for x, name, align in ((0.0, "untrained start", "left"), (1.0, "teacher", "right")):
            axes.axvline(x, color=_TEACHER, linewidth=1.4)
            axes.text(x, 0.47, f" {name} ", ha=align, va="bottom", color=_MUTED, fontsize=12)
        if untrained is not None:
            axes.plot([untrained], [0], marker="D", markersize=8, color=_INK, markerfacecolor=_PANEL, linestyle="none")
        axes.set_ylim(-0.42, 0.72)
        margin = 0.02 * (high - low)
        axes.set_xlim(low - margin, high + margin)
        axes.set_yticks([])
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:.0f} %".replace("-", "−"))

    label = (
        f"Recovered {value:.0%}, 95 % interval {ci[0]:.0%} to {ci[1]:.0%}, on a scale from untrained start to teacher"
    )
    return _both_widths("recovered", label, (_HERO, 1.7), _alone(draw))


def days_plot(days: Sequence[str], panels: Sequence[tuple[str, Sequence[float], Callable[[float], str]]]) -> Markup:
    """Bars by day, one panel below another. panels: title, a value for each day, how a value is written."""

    def draw(figure: Figure) -> None:
        narrow = figure.get_figwidth() < _HERO
        for axes, (title, values, shown) in zip(
            figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], panels, strict=True
        ):
            axes.patch.set_visible(False)
            axes.bar(range(len(days)), values, width=0.72, color=_ACCENT, alpha=0.9)
            axes.set_title(title, loc="left", fontsize=13, color=_MUTED)
            highest = max(values, default=0)
            axes.set_ylim(0, 1.08 * highest or 1)
            axes.set_yticks([0, highest] if highest else [0], [shown(y) for y in ([0, highest] if highest else [0])])
            axes.grid(axis="y", color=_GRID, linewidth=0.8)
            axes.set_axisbelow(True)
            axes.tick_params(bottom=False)
        every = 10 if narrow else 5
        marked = range((len(days) - 1) % every, len(days), every)
        axes.set_xticks(marked, [_day_and_month(days[i]) for i in marked])
        axes.set_xlim(-0.6, len(days) - 0.4)

    ends = f"from {days[0]} to {days[-1]}"
    label = f"{', '.join(title for title, _, _ in panels)} by day, {ends}; the numbers are in the table below"
    return _both_widths("days", label, (_FULL, 1.75 * len(panels)), draw, narrow_height=1.5 * len(panels))


def _day_and_month(day: str) -> str:
    return f"{int(day[8:])} {_MONTHS[int(day[5:7]) - 1]}"


def _smooth(values: Sequence[float]) -> list[float]:
    """Centred running mean; the window grows with the run and shrinks at its ends."""
    half = max(1, len(values) // 24)
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _alone(draw: Callable[[Axes], None]) -> Callable[[Figure], None]:
    return lambda figure: draw(figure.add_subplot())


def _both_widths(
    name: str,
    label: str,
    size: tuple[float, float],
    draw: Callable[[Figure], None],
    narrow_height: float | None = None,
) -> Markup:
    narrow = (_NARROW, narrow_height or min(size[1], 1.5 if size[1] < 2 else 3.2))
    aria = f'role="img" aria-label="{Markup.escape(label)}"'
    drawings = [
        f'<div class="chart {kind}" {aria}>{_svg(f"{name}-{kind}", *inches, draw)}</div>'
        for kind, inches in (("wide", size), ("narrow", narrow))
    ]
    return Markup("\n".join(drawings))  # noqa: S704  (our own drawing; the label is escaped above)


def _svg(salt: str, width: float, height: float, draw: Callable[[Figure], None]) -> str:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "font.size": 13,
        "text.color": _MUTED,
        "axes.labelcolor": _MUTED,
        "axes.edgecolor": _GRID,
        "xtick.color": _GRID,
        "ytick.color": _GRID,
        "xtick.labelcolor": _MUTED,
        "ytick.labelcolor": _MUTED,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "ytick.major.size": 0,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _inline(buffer.getvalue())


def _inline(svg: str) -> str:
    """From a document to an element of our page: no prolog, no namespaces, no page-wide style, no page background."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\s(?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", svg, count=5)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="patch_[12]">\s*<path d="[^"]*" style="fill: #ffffff[^>]*/>\s*</g>', "", svg)
    svg = re.sub(r' id="(?![pmC][0-9a-f]{10}")[^"]*"', "", svg)  # clip paths and markers are referred to; names are not
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    return svg.strip()
