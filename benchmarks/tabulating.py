"""Results as a table of words, which the terminal, the Markdown page and the HTML page show alike.

What is right, wrong or missing is decided here; how it looks is theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.findings import Metric
from benchmarks.gateways import DIRECT, YARDSTICK
from benchmarks.results import Figure, Results
from benchmarks.scenarios import named

NOTHING = "-"
FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure in words; `beside` is its ratio to the yardstick, or what it is above no gateway at all."""

    text: str
    beside: str = ""
    invalid: bool = False

    def __str__(self) -> str:
        beside = f" ({self.beside})" if self.beside else ""
        return f"{self.text}{beside}{' !' if self.invalid else ''}"


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    unit: str
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True)
class Section:
    """A scenario; its rows have a cell for each gateway."""

    name: str
    about: str
    rows: Sequence[Row]


def sections(results: Results) -> list[Section]:
    found = []
    for name in results.scenarios:
        scenario = named(name)
        rows = [Row(metric.label, metric.unit, _cells(results, name, metric)) for metric in scenario.metrics]
        rows = [row for row in rows if any(cell.text != NOTHING for cell in row.cells)]
        found.append(Section(name, scenario.about, rows))
    return found


def _cells(results: Results, scenario: str, metric: Metric) -> list[Cell]:
    yardstick = results.figure(YARDSTICK, scenario, metric.key) if metric.cost else None
    direct = results.figure(DIRECT, scenario, metric.key) if metric.added else None
    cells = []
    for gateway in results.gateways:
        figure = results.figure(gateway, scenario, metric.key)
        if figure is None:
            cells.append(Cell(FAILED if results.failure(gateway, scenario) else NOTHING))
            continue
        beside = ""
        if yardstick is not None and gateway != YARDSTICK and yardstick.median:
            beside = f"{figure.median / yardstick.median:.1f}x"
        if direct is not None and gateway != DIRECT:
            beside = f"{figure.median - direct.median:+.{metric.digits}f}"
        invalid = bool(results.errors(gateway, scenario) or results.failure(gateway, scenario))
        cells.append(Cell(number(figure, metric.digits), beside, invalid))
    return cells


def number(figure: Figure, digits: int) -> str:
    return f"{figure.median:,.{digits}f}"


def remarks(results: Results) -> list[str]:
    """What was wrong, and what has to be known; a line each, what was wrong first."""
    wrong = []
    for gateway in results.gateways:
        for scenario in results.scenarios:
            errors = results.errors(gateway, scenario)
            if errors:
                kinds = ", ".join(f"{count:,} x {kind}" for kind, count in errors.most_common())
                samples = {sample for run in results.of(gateway, scenario) for sample in run.samples.values() if sample}
                shown = f"; one said {min(samples)!r}" if samples else ""
                wrong.append(f"! {gateway}, {scenario} is invalid: {kinds}{shown}")
            failure = results.failure(gateway, scenario)
            if failure is not None:
                wrong.append(f"! {gateway}, {scenario} failed: {failure}")
    return wrong + results.notes()


LEGEND = (
    f"CPU is of the gateway's whole process tree, in microseconds; (1.4x) is against {YARDSTICK} in the same run, "
    f"(+0.10) against {DIRECT}. Medians of the repetitions. ! marks a figure whose scenario had errors: it is invalid."
)
