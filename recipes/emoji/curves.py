"""Training curves of a pack's stages: `assemble.py` shortens each log with `curve`, `card.py` draws them all."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

POINTS, COLUMNS = 60, 5
Curve = list[tuple[int, float]]


def curve(lines: list[dict[str, float]], name: str) -> Curve:
    """(step, mean) of the figure `name` over up to POINTS stretches of a log, of equal length."""
    found = [(int(line["step"]), line[name]) for line in lines if name in line]
    count = -(-len(found) // POINTS)
    parts = [found[first : first + count] for first in range(0, len(found), max(1, count))]
    return [(part[-1][0], float(f"{sum(value for _, value in part) / len(part):.5g}")) for part in parts]


def curves_sheet(stages: dict[str, dict[str, Any]], to: Path) -> None:
    """Write a PNG with the loss over the steps of each stage that has a curve."""
    stages = {name: facts for name, facts in stages.items() if facts.get("curve")}
    if not stages:
        return
    rows = -(-len(stages) // COLUMNS)
    figure = Figure(figsize=(3 * COLUMNS, 2.2 * rows), dpi=80, layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for panel, (name, facts) in zip(panels, stages.items(), strict=False):
        steps, values = zip(*facts["curve"], strict=True)
        panel.plot(steps, values, linewidth=1.2)
        panel.set_title(f"{name}: loss", fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    for panel in panels[len(stages) :]:
        panel.set_axis_off()
    figure.savefig(to)
