"""What is shown while a run is under way, and its table at the end: on a terminal in place, elsewhere line by line."""

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from benchmarks.gateways import Entry
from benchmarks.results import Results, Run
from benchmarks.tabulating import LEGEND, remarks, sections


class Show:
    """The listener of a run: a bar, and a line for each thing that went wrong."""

    def __init__(self, console: Console, seconds: float, repetitions: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("of about"),
            TimeRemainingColumn(),
        )
        # Drawing shares a core with the load: twice a second is enough.
        self.progress = Progress(*columns, console=console, refresh_per_second=2, transient=True)
        self._console = console
        self._repetitions = repetitions
        self._task = self.progress.add_task("", total=seconds)

    def began(self, entry: Entry, repetition: int, what: str) -> None:
        text = f"{entry.name}: {what} ({repetition + 1} of {self._repetitions})"
        self.progress.update(self._task, description=f"{text:<44}")

    def ended(self, run: Run, seconds: float) -> None:
        self.progress.advance(self._task, seconds)
        if run.failure is not None:
            self._console.print(f"[red]{run.gateway}, {run.scenario} failed:[/] {escape(run.failure)}")
        elif run.errors:
            kinds = ", ".join(f"{count:,} x {kind}" for kind, count in run.errors.items())
            self._console.print(f"[red]{run.gateway}, {run.scenario} is invalid:[/] {escape(kinds)}")
        elif not self._console.is_terminal:
            self._console.print(f"{run.gateway}, {run.scenario}: measured")


def table(results: Results, console: Console) -> None:
    """Prints all figures, and what has to be known about them."""
    drawn = Table(header_style="bold", row_styles=("", "on grey7") if console.is_terminal else None)
    drawn.add_column("", no_wrap=True)
    drawn.add_column("", style="dim")
    for gateway in results.gateways:
        drawn.add_column(gateway, justify="right")
    for section in sections(results):
        drawn.add_section()
        drawn.add_row(f"[bold]{section.name}[/]")
        for row in section.rows:
            cells = [
                f"{'[red]' if cell.invalid or cell.text == 'failed' else ''}{escape(cell.text)}"
                f"{f' [dim]{escape(cell.beside)}[/]' if cell.beside else ''}{' !' if cell.invalid else ''}"
                for cell in row.cells
            ]
            drawn.add_row(f"  {escape(row.label)}", row.unit, *cells)
    console.print(drawn)
    console.print(LEGEND, style="dim", highlight=False)
    for remark in remarks(results):
        console.print(escape(remark), style="red" if remark.startswith("!") else "yellow", highlight=False)
