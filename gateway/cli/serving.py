"""`pagegate up`, `serve`, `config` and `version`: what starts a gateway here, and looks at what it would start with."""

import json
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Annotated

import typer
import yaml

from gateway import settings as configuration
from gateway.cli.telling import fail

config = typer.Typer(help="Look at a configuration.", no_args_is_help=True)

ConfigFile = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file (YAML).", metavar="FILE")]


def _load(path: Path | None) -> configuration.Settings:
    try:
        return configuration.load(path)
    except configuration.SettingsError as error:
        fail(f"{error.source} cannot be used:", *(f"  {problem}" for problem in error.problems))


def up(
    profiles: Annotated[
        list[str] | None, typer.Argument(help="Engine profiles to start, by name or file; default: the bundled model.")
    ] = None,
    config_file: ConfigFile = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (PAGEGATE_PORT; else 8080).")] = None,
    state: Annotated[
        Path | None, typer.Option(help="Folder for keys, models and logs (PAGEGATE_STATE; else .pagegate).")
    ] = None,
) -> None:
    """Start engines and the gateway on this machine, and print how to call it."""
    from gateway.embedded.up import up as start

    try:
        environment = configuration.embedded()
    except configuration.SettingsError as error:
        fail(*error.problems)
    chosen = environment.model_copy(
        update={
            name: value
            for name, value in {"port": port, "state": state, "config": config_file}.items()
            if value is not None
        }
    )
    raise typer.Exit(start(tuple(profiles or ()), chosen, configuration.environment()))


def serve(config_file: ConfigFile = None) -> None:
    """Run the gateway alone, before engines that run elsewhere."""
    from gateway import server

    settings = _load(config_file)
    if not settings.models:
        fail("no models are configured.", "  models: name at least one, with the URL of an engine")
    try:
        server.run(settings)
    except configuration.SettingsError as error:
        fail(f"{error.source} cannot be used:", *(f"  {problem}" for problem in error.problems))
    except server.PortTaken as error:
        fail(f"{error}.", "  Choose another with PAGEGATE_PORT, or end what listens there.")


@config.command()
def check(file: Annotated[Path, typer.Argument(help="Settings file (YAML).")]) -> None:
    """Say whether a settings file can be used; every problem is named."""
    settings = _load(file)
    try:
        configuration.secret_of(settings.identity)
    except configuration.SettingsError as error:
        fail(f"{error.source} cannot be used:", *(f"  {problem}" for problem in error.problems))
    print(f"{file}: good ({len(settings.models)} models, {len(settings.identity.keys)} keys)")


@config.command()
def schema() -> None:
    """Print the JSON Schema of the settings file, for editors."""
    print(json.dumps(configuration.Settings.model_json_schema(), indent=2))


@config.command()
def show(config_file: ConfigFile = None) -> None:
    """Print the settings in force: file, environment and defaults together. Secrets are masked."""
    print(yaml.safe_dump(_load(config_file).model_dump(mode="json"), sort_keys=False), end="")


def version() -> None:
    """Print the version."""
    print(f"pagegate {installed_version('pagegate')}")
