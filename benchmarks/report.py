"""The report of the measurements: Markdown tables, and a plot."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A request of the service, compared with a minimal application (its floor); `_us`: CPU microseconds a request."""

    request: str
    database: str
    floor: str
    # None if the ratio is only shown and has no goal.
    goal: float | None
    ratio: float
    server_us: float
    floor_us: float
    database_us: float
    per_second: float
    floor_per_second: float
    # Response times in milliseconds, with enough clients to saturate the server.
    p50: float
    p99: float

    @property
    def holds(self) -> bool | None:
        return None if self.goal is None else self.ratio <= self.goal

    @property
    def cells(self) -> list[str]:
        return [
            f"`{self.request}`",
            self.database or "none",
            self.floor,
            f"{self.ratio:.2f}",
            "" if self.goal is None else f"{self.goal:.1f}",
            {None: "", True: "yes", False: "**no**"}[self.holds],
            f"{self.server_us:.0f} / {self.floor_us:.0f}",
            f"{self.database_us:.0f}",
            f"{self.per_second:,.0f} / {self.floor_per_second:,.0f}",
            f"{self.p50:.1f}, {self.p99:.1f}",
        ]


HEAD = (
    *("request", "database", "beside", "ratio", "goal", "holds", "CPU us a request", "CPU us of the database"),
    *("requests a second", "p50, p99 ms"),
)


@dataclass(frozen=True)
class Finding:
    """Any other measurement: its name, its value, its goal, and whether the value meets the goal."""

    what: str
    value: str
    goal: str = ""
    holds: bool | None = None

    @property
    def cells(self) -> list[str]:
        return [self.what, self.value, self.goal, {None: "", True: "yes", False: "**no**"}[self.holds]]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plot(rows: Sequence[Row], file: Path) -> None:
    """Draw each ratio that has a goal, with the goal. Imports matplotlib, which only this plot needs."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    rows = [row for row in rows if row.goal is not None]
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(rows) + 1.2))
    names = [f"{row.request}  {row.database}".strip() for row in rows]
    colors = ["#2f7d4f" if row.holds else "#b3432b" for row in rows]
    axes.barh(names, [row.ratio for row in rows], color=colors)
    axes.plot([row.goal or 0 for row in rows], names, "k|", markersize=16, label="goal")
    axes.axvline(1, color="gray", linewidth=0.8, linestyle="--", label="the floor")
    axes.invert_yaxis()
    axes.set_xlabel("processor time of the service, as a ratio to its floor")
    axes.legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(file)
