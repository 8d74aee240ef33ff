"""What `proof_audit_power` shows: a table and a figure, made of its results alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["figure", "table"]

Cells = Mapping[str, Mapping[str, Any]]
# factor, the base's value, whether values are numbers to be drawn on a logarithmic axis
PANELS = (
    ("epochs", "2", False), ("share of marked data", "100%", True), ("replies", "128", True),
    ("context width", "1", False), ("layers", "12", False),
)  # fmt: skip


def table(cells: Cells) -> str:
    lines = [
        "| what is different | marked tokens | pairs | score of pairs (95 %; without mark) | log10 p | tail | "
        "twins | released preferred (95 %) | log10 p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cell in cells.items():
        marks, twins, effect = cell["radioactivity"], cell.get("twins"), cell["radioactivity"]["effect"]
        low, high = effect["ci95"]
        row = [
            "**nothing**" if name == "base: " else name.removesuffix(": "),
            f"{cell['tokens']:,}",
            f"{marks['pairs']:,}",
            f"{effect['value']:.3f} ({low:.3f} to {high:.3f}; {effect['under_null']:g})",
            f"{marks['log10_p']:.1f}",
            f"{marks['log10_tail']:.1f}",
            *([_count(twins), _share(twins), f"{twins['log10_p']:.1f}"] if twins else ["", "", ""]),
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def _count(twins: Mapping[str, Any]) -> str:
    return f"{twins['pairs']}"


def _share(twins: Mapping[str, Any]) -> str:
    low, high = twins["ci95"]
    return f"{twins['share']:.0%} ({low:.0%} to {high:.0%})"


def figure(cells: Cells, file: Path) -> None:
    """−log10 p against each factor that was measured; the rest unchanged."""
    measured = {cell["factor"] for cell in cells.values()}
    panels = [panel for panel in PANELS if panel[0] in measured]
    size = (2.6 * len(panels) + 0.6, 3.2)
    drawn, row = plt.subplots(1, len(panels), figsize=size, layout="constrained", sharey=True, squeeze=False)
    axes = row[0]
    for axis, (factor, base, logarithmic) in zip(axes, panels, strict=True):
        points = sorted(
            (
                (_number(value), cell)
                for value, cell in [
                    (base, cells["base: "]),
                    *((c["value"], c) for c in cells.values() if c["factor"] == factor),
                ]
                if value.rstrip("%").isdecimal()
            ),
            key=lambda point: point[0],
        )
        for what, colour, marker in (("radioactivity", "tab:green", "o"), ("twins", "tab:purple", "s")):
            shown = [(x, -cell[what]["log10_p"]) for x, cell in points if what in cell]
            axis.plot(*zip(*shown, strict=True), color=colour, marker=marker, markersize=4, label=what)
        axis.set_xlabel(f"{factor}, %" if base.endswith("%") else factor)
        axis.set_yscale("symlog", linthresh=6)
        axis.axhline(6, color="0.7", linewidth=0.8, linestyle="--")
        if logarithmic:
            axis.set_xscale("log")
        axis.set_xticks([x for x, _ in points], [f"{x:g}" for x, _ in points])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("−log₁₀ p")
    axes[0].legend(frameon=False)
    drawn.savefig(file, dpi=110)
    plt.close(drawn)


def _number(value: str) -> float:
    return float(value.rstrip("%"))
