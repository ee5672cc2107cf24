"""Profiles from the command line: `python -m engine_config check|render|plan|list|checksum`.

Prints; everything that is printed was decided elsewhere. Tables for a terminal, plain lines for a pipe,
`--json` for a machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from engine_config import catalog, model_files
from engine_config.architecture import read
from engine_config.helm import helm_values
from engine_config.memory import gib
from engine_config.plan import TYPICAL_TOKENS, Plan, plan
from engine_config.problems import BadSpec, errors
from engine_config.render import worker_args, worker_env
from engine_config.spec import EngineSpec, Source

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Check, render and plan engine profiles.",
)

Profiles = Annotated[list[str], typer.Argument(help="Names of shipped profiles, or paths of YAML files.")]
Profile = Annotated[str, typer.Argument(help="Name of a shipped profile, or path of a YAML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_profiles(as_json: AsJson = False) -> None:
    """The shipped profiles."""
    specs = [catalog.load(name) for name in catalog.names()]
    rows = [
        {
            "profile": spec.name,
            "model": spec.model.source,
            "task": spec.task,
            "accelerator": spec.accelerator.kind,
            "devices": spec.parallelism.accelerators,
            "context_tokens": spec.context_tokens,
        }
        for spec in specs
    ]
    if as_json:
        _print_json(rows)
        return
    _print_table([*rows[0]], [[str(value) for value in row.values()] for row in rows])


@app.command()
def check(profiles: Profiles, as_json: AsJson = False) -> None:
    """Every problem of these profiles; exit status 1 when one of them is an error."""
    examined = [_examined(profile) for profile in profiles]
    if as_json:
        _print_json({e.source: [asdict(problem) for problem in e.problems] for e in examined})
    else:
        for one in examined:
            for problem in one.problems:
                print(f"{one.source}: {problem.severity}: {problem}")
                if problem.remedy:
                    print(f"    {problem.remedy}")
            if not one.problems:
                print(f"{one.source}: nothing to say against it")
    raise typer.Exit(1 if any(errors(e.problems) for e in examined) else 0)


@app.command()
def render(
    profile: Profile,
    helm: Annotated[bool, typer.Option("--helm", help="Print values for the chart, as YAML.")] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    gpus: Annotated[str, typer.Option(help="Assigned GPUs, e.g. 0,1.")] = "",
    model_path: Annotated[str, typer.Option(help="Folder of the model; default: the profile's source.")] = "",
    ipc_dir: Annotated[Path | None, typer.Option(help="Folder for event sockets.")] = None,
    as_json: AsJson = False,
) -> None:
    """The worker's environment and command, quoted for a shell."""
    spec = _loaded(profile)
    if helm:
        config = catalog.model_config(spec)
        values = helm_values(spec, None if config is None else read(config))
        print(json.dumps(values, indent=2) if as_json else yaml.safe_dump(values, sort_keys=False), end="")
        return
    arguments = worker_args(spec, model_path or spec.model.source, host, port, ipc_dir)
    environment = worker_env(spec, [gpu for gpu in gpus.split(",") if gpu])
    if as_json:
        _print_json({"environment": environment, "arguments": arguments})
        return
    for name, value in environment.items():
        print(f"{name}={shlex.quote(value)} \\")
    print("python -m vllm.entrypoints.launchers.api_server.entry \\")
    print(" \\\n".join(f"  {line}" for line in _by_option(arguments)))


@app.command("plan")
def show_plan(
    profile: Profile,
    typical_tokens: Annotated[int, typer.Option(help="Prompt plus answer of a usual call.", min=1)] = TYPICAL_TOKENS,
    host_memory_gib: Annotated[
        float | None, typer.Option(help="Memory for a CPU worker; default: this machine's.", min=0.1)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Whether it fits, how many KV blocks and calls it gives, what to change; status 1 if it does not."""
    spec = _loaded(profile)
    config = catalog.model_config(spec)
    if config is None:
        raise _failed(f"{spec.model.source} is not known here: set model.source to a folder with its config.json")
    weights = None
    if spec.model.kind is Source.FOLDER:
        weights = model_files.weights_bytes(Path(spec.model.source)) or None
    memory_bytes = int(host_memory_gib * 1024**3) if host_memory_gib else _machine_memory_bytes()
    sized = plan(spec, config, weights, host_memory_bytes=memory_bytes, typical_tokens=typical_tokens)
    if as_json:
        _print_json({"profile": spec.name, "fits": sized.fits, **asdict(sized)})
    else:
        _print_plan(spec, sized)
    raise typer.Exit(0 if sized.fits else 1)


@app.command()
def checksum(
    folder: Annotated[Path, typer.Argument(help="Folder of a model.", exists=True, file_okay=False)],
    write: Annotated[bool, typer.Option(help="Write SHA256SUMS into the folder.")] = False,
) -> None:
    """The folder's SHA256SUMS, and the manifest for `model.checksum`."""
    text = model_files.sums(folder)
    if write:
        (folder / model_files.SUMS_FILE).write_text(text, "utf-8")
    print(text, end="")
    print(f"manifest: {hashlib.sha256(text.encode()).hexdigest()}")


def _print_plan(spec: EngineSpec, sized: Plan) -> None:
    m = sized.memory
    rows = [
        ("fits", "yes" if sized.fits else "no"),
        ("accelerator", f"{sized.devices} x {spec.accelerator.device.name}"),
        ("parameters", f"{sized.parameters:,}"),
        ("memory per device", gib(m.device) if m.device else "not known"),
        ("  weights", gib(m.weights)),
        ("  activations (estimate)", gib(m.activations)),
        ("  CUDA graphs (estimate)", gib(m.graphs)),
        ("  processes and driver (estimate)", gib(m.overhead)),
        ("  KV cache", gib(m.kv_cache)),
        ("KV cache per token", f"{sized.kv_bytes_per_token:,} bytes"),
        ("KV blocks", f"{sized.kv_blocks:,} of {spec.kv_cache.block_size} tokens"),
        ("KV tokens", f"{sized.kv_tokens:,}"),
        (f"calls at full context ({spec.context_tokens:,})", f"{sized.calls_at_full_context:,}"),
        (f"calls of {sized.typical_tokens:,} tokens", f"{sized.calls_at_typical_length:,}"),
        ("sequences per step, at most", f"{spec.scheduling.max_sequences:,}"),
    ]
    if m.adapters:
        rows.insert(5, ("  adapters", gib(m.adapters)))
    _print_table([spec.name, ""], [list(row) for row in rows])
    for reason in sized.reasons:
        print(f"does not fit: {reason}")
    if sized.changes:
        print("one of these would do:")
    for change in sized.changes:
        print(f"  {change}")
    for note in sized.notes:
        print(f"note: {note}")


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    console = Console()
    if not console.is_terminal:
        for row in rows:
            print("\t".join(cell.strip() for cell in row))
        return
    table = Table(*head, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _by_option(arguments: list[str]) -> list[str]:
    """One line an option with its values."""
    lines: list[str] = []
    for argument in arguments:
        if argument.startswith("--"):
            lines.append(argument)
        else:
            lines[-1] += " " + shlex.quote(argument)
    return lines


def _examined(profile: str) -> catalog.Examined:
    try:
        return catalog.examine(profile)
    except BadSpec as error:
        return catalog.Examined(error.source, None, error.problems)


def _loaded(profile: str) -> EngineSpec:
    try:
        return catalog.load(profile)
    except BadSpec as error:
        raise _failed(str(error)) from None


def _failed(message: str) -> typer.Exit:
    print(message, file=sys.stderr)
    return typer.Exit(1)


def _machine_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


if __name__ == "__main__":
    app()
