"""Charts of the results, as SVG files that read well on light and dark pages."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from common import Figure

matplotlib.use("svg")
import matplotlib.pyplot as plt

OURS, OTHERS, INK = "#16a34a", "#94a3b8", "#64748b"
TITLES = {
    "signup": "Signups a second, compared with a table without a trigger (8 clients; 1 = no trigger)",
    "drain": "Emails or jobs a second to a mail server that answers after 50 ms (one worker)",
    "detection": "Milliseconds from 100 people's commit to all their messages, by the number who wait",
}
FORMATS = {"signup": "{:.2f}", "drain": "{:,.0f}", "detection": "{:.0f}"}


def draw(figures: list[Figure], folder: Path) -> list[Path]:
    """One file for each chart that has figures; their paths."""
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "activation", "font.family": "sans-serif"})
    drawn = []
    for chart, title in TITLES.items():
        bars = [figure for figure in figures if figure.chart == chart]
        if not bars:
            continue
        if chart != "detection":
            bars.sort(key=lambda figure: figure.median)
        picture, axes = plt.subplots(figsize=(8, 0.9 + 0.38 * len(bars)))
        middle = [figure.median for figure in bars]
        spread = [
            [value - min(figure.values) for figure, value in zip(bars, middle, strict=True)],
            [max(figure.values) - value for figure, value in zip(bars, middle, strict=True)],
        ]
        colours = [OURS if figure.label == "activation" or chart == "detection" else OTHERS for figure in bars]
        axes.barh(
            [figure.label for figure in bars], middle, color=colours, xerr=spread, ecolor=INK, capsize=2, height=0.7
        )
        for place, figure in enumerate(bars):
            axes.text(
                max(figure.values) + max(middle) * 0.015,
                place,
                FORMATS[chart].format(figure.median),
                va="center",
                color=INK,
            )
        axes.set_title(title, fontsize=10, color=INK, loc="left", x=0)
        axes.set_xlim(0, max(max(figure.values) for figure in bars) * 1.12)
        axes.tick_params(colors=INK, length=0)
        axes.get_xaxis().set_visible(False)
        for side in axes.spines.values():
            side.set_visible(False)
        path = folder / f"{chart}.svg"
        picture.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
        plt.close(picture)
        drawn.append(path)
    return drawn
