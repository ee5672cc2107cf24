"""The command line: what is measured is chosen here, and where the results go. `make bench ARGS="--help"`."""

import asyncio
import secrets
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console

from benchmarks import cores, html_page, markdown, scenarios
from benchmarks.facts import facts
from benchmarks.findings import FULL_SIZE, QUICK_SIZE
from benchmarks.gateways import INSTALLED, READY_MADE, Entry, default_names, given
from benchmarks.installing import install
from benchmarks.lab import Lab, RealEngine
from benchmarks.processes import Trouble, require_free
from benchmarks.results import Results
from benchmarks.running import Plan, Running
from benchmarks.showing import Show, table

OUT = INSTALLED.parent / "out"
REPETITIONS = 3
INTERRUPTED = 130

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="A rougher look, in about a minute.")] = False,
    scenario: Annotated[
        list[str] | None, typer.Option(help="Only these, e.g. plain,open-10000 (see --list); may be repeated.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these ready-made gateways, e.g. direct,pagegate; may be repeated.")
    ] = None,
    gateway: Annotated[
        list[str] | None,
        typer.Option(
            help="One more: name=http://host:port, or name='command {port} {engines}'. Also {engine}, {model}, {key}, "
            "{folder} and {settings} (a settings file of Pagegate's); may be repeated."
        ),
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(help="A header for such a gateway: 'name=Authorization: Bearer ...'.")
    ] = None,
    install_: Annotated[
        list[str] | None, typer.Option("--install", help="Install a ready-made gateway first, and measure it too.")
    ] = None,
    repetitions: Annotated[int | None, typer.Option(min=1, max=50, help="3, and 1 with --quick.")] = None,
    engine: Annotated[str | None, typer.Option(help="A real engine's URL, instead of mock engines.")] = None,
    model: Annotated[str | None, typer.Option(help="What the real engine serves.")] = None,
    engine_ports: Annotated[
        str | None, typer.Option(help="Ports of the two mock engines, for a gateway that runs elsewhere.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the JSON and HTML files.")] = OUT,
    results_: Annotated[Path | None, typer.Option("--results", help="Also write a Markdown page.")] = None,
    from_: Annotated[Path | None, typer.Option("--from", help="Measure nothing: show an earlier JSON file.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Say what there is to measure.")] = False,
) -> None:
    """Measures the gateway: what a call, a stream and a chunk cost it, what it adds, what it withstands."""
    # Without a terminal rich takes 80 columns, too few for a table.
    console = Console() if sys.stdout.isatty() else Console(width=160)
    if list_:
        show_list(console)
        return
    if from_ is not None:
        results = read(from_)
        table(results, console)
        write(results, None, results_, console)
        return
    entries = chosen_gateways(only, gateway, header, install_, console)
    real = real_engine(engine, model)
    chosen = chosen_scenarios(scenario, quick=quick, real=real is not None)
    plan = Plan(
        entries=entries,
        scenarios=chosen,
        size=QUICK_SIZE if quick else FULL_SIZE,
        repetitions=repetitions or (1 if quick else REPETITIONS),
    )
    ports = tuple(map(int, engine_ports.split(","))) if engine_ports else ()
    results = until_signal(measured(plan, ports, real, console))
    table(results, console)
    write(results, out, results_, console)
    if not results.valid:
        raise typer.Exit(1)


async def measured(plan: Plan, ports: tuple[int, ...], real: RealEngine | None, console: Console) -> Results:
    """Carries the plan out; nothing that was started is left."""
    require_free(ports)
    core_plan = cores.plan(cores.usable_cores())
    console.print(f"{core_plan}; about {plan.seconds / 60:.0f} min {plan.seconds % 60:.0f} s")
    if not core_plan.apart:
        console.print("[yellow]there is one core for everything: figures are of little use[/]")
    show = Show(console, plan.seconds, plan.repetitions)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, show.progress:
        lab = Lab(
            cores=core_plan,
            folder=Path(folder),
            key=f"sk-{secrets.token_hex(24)}",
            secret=secrets.token_urlsafe(32),
            engine_ports=ports,
            real=real,
        )
        running = Running(plan, lab, show, facts(sys.argv[1:], plan.entries, core_plan))
        return await running.run()


def until_signal(work: Coroutine[Any, Any, Results]) -> Results:
    """Runs it; SIGTERM and SIGHUP end it as Ctrl-C does: after everything that it started."""

    async def supervised() -> Results:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        return await work

    try:
        return asyncio.run(supervised())
    except asyncio.CancelledError:
        raise Interrupted from None


class Interrupted(Exception):
    """Somebody wanted it to end."""


def show_list(console: Console) -> None:
    console.print("Scenarios (--scenario), and open-N for any number of streams:")
    for name in scenarios.LISTED:
        one = scenarios.named(name)
        default = "quick" if name in scenarios.QUICK_NAMES else "" if name in scenarios.FULL_NAMES else "only if named"
        marks = ", ".join(filter(None, (default, "also with --engine" if one.real else "")))
        console.print(f"  {name:<14}{one.about}{f' ({marks})' if marks else ''}", highlight=False, soft_wrap=True)
    console.print("\nGateways (--only):")
    for name, entry in READY_MADE.items():
        state = entry.missing() or ("measured unless others are chosen" if name in default_names() else "")
        console.print(
            f"  {name:<14}{entry.about}{f' [{state}]' if state else ''}", highlight=False, markup=False, soft_wrap=True
        )


def words(given: Sequence[str] | None) -> list[str]:
    """Of options that may be repeated and may hold commas."""
    return [word.strip() for text in given or () for word in text.split(",") if word.strip()]


def chosen_gateways(
    only: Sequence[str] | None,
    more: Sequence[str] | None,
    header: Sequence[str] | None,
    to_install: Sequence[str] | None,
    console: Console,
) -> list[Entry]:
    """Raises Trouble for a name that is unknown, and for what is not installed."""
    headers = defaultdict(list)
    for text in header or ():
        name, _, line = text.partition("=")
        field, colon, value = line.partition(":")
        if not colon:
            raise Trouble(
                f"--header {text}: a gateway's name and a header are needed, as in mine=Authorization: Bearer x"
            )
        headers[name].append((field.strip(), value.strip()))
    installs = words(to_install)
    names = list(dict.fromkeys((words(only) or default_names()) + installs))
    for name in names:
        if name not in READY_MADE:
            raise Trouble(f"there is no ready-made gateway {name}; there are {', '.join(READY_MADE)}")
    for name in installs:
        install(READY_MADE[name], console.print)
    for name in names:
        missing = READY_MADE[name].missing()
        if missing is not None:
            raise Trouble(missing)
    others = [given(text, headers) for text in more or ()]
    for entry in others:
        if entry.name in names:
            raise Trouble(f"--gateway {entry.name}=...: there is a {entry.name} already")
        names.append(entry.name)
    unknown = headers.keys() - {entry.name for entry in others}
    if unknown:
        raise Trouble(f"--header: there is no --gateway {', '.join(sorted(unknown))}")
    return [READY_MADE[name] for name in names if name in READY_MADE] + others


def chosen_scenarios(given: Sequence[str] | None, *, quick: bool, real: bool) -> list[scenarios.Scenario]:
    """Raises Trouble for a name that is unknown, and for one that makes no sense before a real engine."""
    asked = words(given)
    found = [scenarios.named(name) for name in asked or (scenarios.QUICK_NAMES if quick else scenarios.FULL_NAMES)]
    if real and asked:
        wrong = [one.name for one in found if not one.real]
        if wrong:
            raise Trouble(f"{', '.join(wrong)} cannot be measured before a real engine")
    return [one for one in found if one.real or not real]


def real_engine(url: str | None, model: str | None) -> RealEngine | None:
    if url is None and model is None:
        return None
    if not url or not model or not url.startswith("http://"):
        raise Trouble("a real engine needs --engine http://host:port and --model NAME")
    return RealEngine(url.rstrip("/"), model)


def read(path: Path) -> Results:
    try:
        return Results.from_json(orjson.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Trouble(f"{path} cannot be shown: {error}") from None


def write(results: Results, folder: Path | None, page: Path | None, console: Console) -> None:
    """The JSON and the HTML into a folder, named by the time, and the Markdown page where it is wanted."""
    files: dict[Path, bytes] = {}
    if folder is not None:
        name = f"bench-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        files[folder / f"{name}.json"] = orjson.dumps(results.to_json(), option=orjson.OPT_INDENT_2)
        files[folder / f"{name}.html"] = html_page.page(results).encode()
    if page is not None:
        files[page] = markdown.page(results).encode()
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        console.print(f"written: {path}", soft_wrap=True, highlight=False)


def main() -> None:
    """Runs the command; trouble is one message and status 2, an interruption status 130."""
    try:
        app()
    except Trouble as trouble:
        sys.stderr.write(f"bench: {trouble}\n")
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt):
        sys.stderr.write("bench: interrupted; everything that was started has ended\n")
        sys.exit(INTERRUPTED)
