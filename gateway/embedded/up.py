"""`pagegate up`: one machine's workers and gateway, started together, shown, watched and stopped together.

The one module of the gateway that knows `engine_config`. It runs in a process of its own, the parent of the
workers and of the gateway; the gateway learns of the workers from a settings file, as it would elsewhere.
What is decided about workers is decided in `engine_config`; here it is put in order and told.
"""

import asyncio
import json
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine_config import catalog
from engine_config.problems import BadSpec
from engine_config.supervision import local_workers, placement, ports, preflight
from engine_config.supervision.children import ChildSpec, answers, ended
from engine_config.supervision.local_workers import LocalWorker
from engine_config.supervision.progress import Stage
from engine_config.supervision.supervisor import ChildFailed, News, State, Supervisor
from engine_config.supervision.words import Words
from gateway import settings as configuration
from gateway.embedded.bootstrap import SHORT_KEY, BadKey, administrators_key, bootstrap_key
from gateway.embedded.greeting import greeting
from gateway.embedded.leaving import Leaving
from gateway.embedded.one_machine import Administration, Worker, rendered
from gateway.embedded.state_folder import StateFolder, StateInUse, opened
from gateway.embedded.terminal import Switchable
from gateway.identity.keys import digest, ensure_secret
from gateway.settings import Embedded, Settings, SettingsError

GATEWAY = "gateway"
GATEWAY_STARTUP_S = 60.0
# Beyond what the gateway gives open calls: for what it closes after them.
GATEWAY_TEARDOWN_S = 10.0
READY_POLL_S = 0.05
READY_S = 10.0
SHOWN_WORDS = 15


class CannotStart(Exception):
    """Something is in the way. `obstacles` are pairs of what it is and how to remove it."""

    def __init__(self, *obstacles: tuple[str, str]) -> None:
        super().__init__("; ".join(what for what, _ in obstacles))
        self.obstacles = obstacles


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What is to run and how it is called: decided, checked and written before anything is started."""

    settings: Settings
    port: int
    key: str
    workers: tuple[LocalWorker, ...]
    environment: Mapping[str, str]

    @property
    def host(self) -> str:
        """Where the gateway can be reached from this machine."""
        return _reached(self.settings.server.host)

    @property
    def base_url(self) -> str:
        return f"http://{_in_url(self.host)}:{self.port}/v1"

    @property
    def chat_model(self) -> str | None:
        chatty = (worker.spec for worker in self.workers if worker.spec.task == "generate")
        return next((spec.served_names[0] for spec in chatty), None)

    def greeting(self, logs: Path) -> str:
        """What is said when everything is ready."""
        models = list(dict.fromkeys(worker.spec.served_names[0] for worker in self.workers))
        return greeting(self.base_url, self.key, models, self.chat_model, str(logs))

    def children(self, state: StateFolder) -> list[ChildSpec]:
        """The gateway first, then the workers."""
        server, telemetry = self.settings.server, self.settings.telemetry
        gateway = ChildSpec(
            name=GATEWAY,
            command=(sys.executable, "-m", "gateway", "serve", "--config", str(state.settings)),
            port=self.port,
            host=self.host,
            probe_path="/livez",
            grace_s=server.drain_delay_s + server.drain_timeout_s + GATEWAY_TEARDOWN_S,
            startup_timeout_s=GATEWAY_STARTUP_S,
            environment=self.environment,
        )
        return [
            gateway,
            *(worker.child(state.path, self.environment, telemetry.otlp_endpoint) for worker in self.workers),
        ]


def up(profiles: Sequence[str], options: Embedded, environ: Mapping[str, str]) -> int:
    """Runs until a signal comes, or until nothing is left that could serve; returns the exit status.

    Args:
        profiles: Names or paths of what to serve; none for the bundled model.
        options: Port, key, state folder and settings file, where they were given.
        environ: The environment: its settings, and what the processes inherit.
    """
    try:
        asyncio.run(_run(profiles, options, environ, Switchable(sys.stdout)))
    except (CannotStart, ChildFailed, StateInUse, BadSpec, SettingsError, BadKey, OSError) as error:
        print("\n".join(_told(error)), file=sys.stderr, flush=True)
        return 1
    return 0


async def _run(profiles: Sequence[str], options: Embedded, environ: Mapping[str, str], terminal: Switchable) -> None:
    with Leaving() as leaving, opened(options.state) as state, ExitStack() as kept:
        with terminal.live():
            terminal.doing("checks", "looking at this machine")
            arrangement = await _arranged(profiles, options, environ, state, terminal, kept)
            terminal.done("checks", "this machine will do")
            await _model_made(arrangement, state, terminal)
        await _serve(arrangement, state, leaving, terminal)
    terminal.say("everything has stopped")


async def _arranged(
    profiles: Sequence[str],
    options: Embedded,
    environ: Mapping[str, str],
    state: StateFolder,
    terminal: Switchable,
    kept: ExitStack,
) -> Arrangement:
    """All decisions. The ports are kept while `kept` is open. Raises CannotStart, and what `up` catches."""
    own = configuration.load(options.config, environ)
    wanted_port = own.server.port if options.port is None else options.port
    port = ports.number(kept.enter_context(_kept_port(wanted_port, own.server.host)))
    machine = preflight.look(state.path)
    gpus = await placement.gpus(environ.get("CUDA_VISIBLE_DEVICES"))
    names = profiles or (local_workers.default_profile(gpus, machine.engines),)
    specs = [catalog.load(name) for name in names]
    to_make = local_workers.wants_bundled_model(specs) and not local_workers.bundled_model_is_there(state.models)
    obstacles = preflight.obstacles(machine, specs, models_to_make=to_make)
    if obstacles:
        raise CannotStart(*((obstacle.what, obstacle.remedy) for obstacle in obstacles))
    try:
        workers = local_workers.local_workers(
            list(zip(names, specs, strict=True)), gpus, lambda: ports.number(kept.enter_context(ports.keep()))
        )
    except placement.NotEnoughGpus as error:
        raise CannotStart((str(error), "serve less at once, or free GPUs (nvidia-smi shows who uses them)")) from None
    if too_small := local_workers.too_small(workers, gpus):
        terminal.trouble("gpus", "; ".join(too_small))
    key = bootstrap_key(options.bootstrap_key, state)
    if len(key) < SHORT_KEY:
        terminal.trouble("key", f"it has only {len(key)} characters: it can be guessed")
    admin_port = ports.number(kept.enter_context(_kept_port(own.admin.port or 0, own.admin.host)))
    settings = _written_settings(own, _base(options.config, environ), (port, admin_port), key, workers, state)
    # Our settings are in the file now: said twice they could contradict it, and the key is nobody's business.
    inherited = {name: value for name, value in environ.items() if not name.startswith(configuration.PREFIX)}
    return Arrangement(settings, port, key, tuple(workers), inherited)


def _reached(host: str) -> str:
    """An address of this machine that reaches what listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _kept_port(port: int, host: str) -> socket.socket:
    try:
        return ports.keep(port, host)
    except ports.PortTaken as error:
        free = next((number for number in range(port + 1, port + 100) if _is_free(number, host)), port + 1)
        remedy = f"choose another with PAGEGATE_PORT={free} make run (or pagegate up --port {free}), or end it"
        raise CannotStart((str(error), remedy)) from None
    except OSError as error:
        where = f"{host} port {port}"
        raise CannotStart((f"cannot listen on {where}: {error.strerror}", "choose another port or host")) from None


def _is_free(port: int, host: str) -> bool:
    try:
        ports.keep(port, host).close()
    except (ports.PortTaken, OSError, OverflowError):
        return False
    return True


def _base(config: Path | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """The operator's settings as they were written, the environment's over the file's; both were checked."""
    raw = yaml.safe_load(config.read_text(encoding="utf-8")) if config else None
    return configuration.overlay(raw or {}, environ)


def _written_settings(
    own: Settings,
    base: Mapping[str, Any],
    listening: tuple[int, int],
    key: str,
    workers: Sequence[LocalWorker],
    state: StateFolder,
) -> Settings:
    """The gateway's settings for this run, written to the state folder. Raises SettingsError, OSError."""
    identity = own.identity
    if identity.secret is None and identity.secret_file is None:
        identity = identity.model_copy(update={"secret_file": state.secret})
        ensure_secret(state.secret)
    secret, secret_file = configuration.secret_of(identity), identity.secret_file
    (port, admin_port), admin_key = listening, administrators_key(state)
    raw = rendered(
        base,
        port=port,
        secret_file=None if secret_file is None else str(secret_file.absolute()),
        key_digest=digest(key, secret),
        workers=[
            Worker(worker.name, worker.spec.served_names, worker.url, worker.spec.scheduling.max_sequences)
            for worker in workers
        ],
        administration=Administration(admin_port, digest(admin_key, secret), str(state.database)),
    )
    settings = configuration.parse(raw, "the settings with this run's workers", state.settings.parent)
    state.write(state.settings, yaml.safe_dump(raw, sort_keys=False, allow_unicode=True))
    url = f"http://{_in_url(_reached(settings.admin.host))}:{admin_port}"
    state.write(state.admin, json.dumps({"url": url, "key": admin_key}) + "\n")
    return settings


async def _model_made(arrangement: Arrangement, state: StateFolder, terminal: Switchable) -> None:
    """Makes the bundled model where a worker wants it. Raises CannotStart."""
    if not local_workers.wants_bundled_model([worker.spec for worker in arrangement.workers]):
        return
    step = local_workers.making_bundled_model(state.models, arrangement.environment)
    terminal.doing("model", "preparing the bundled model")
    with Words(state.logs / f"{step.name}.log", lambda line: terminal.doing("model", line)) as words:
        status = await ended(step, words)
    if status != 0:
        said = words.last[-1] if words.last else f"ended with status {status}"
        raise CannotStart((f"the bundled model could not be prepared: {said}", f"see {state.logs / step.name}.log"))
    terminal.done("model", "the bundled model is ready")


async def _serve(arrangement: Arrangement, state: StateFolder, leaving: Leaving, terminal: Switchable) -> None:
    """Runs everything until cancelled. Raises ChildFailed when nothing is left that could serve."""

    def tell(news: News) -> None:
        _show(news, terminal)

    async with Supervisor(
        arrangement.children(state), logs=state.logs, report=tell, environment=arrangement.environment
    ) as supervisor:
        try:
            with terminal.live():
                await supervisor.ready()
                await _gateway_ready(arrangement)
            terminal.say(arrangement.greeting(state.logs))
            await _watched(supervisor, [worker.name for worker in arrangement.workers])
        finally:
            leaving.then(supervisor.hurry)
            terminal.say("stopping: calls under way may end, then the engines stop (Ctrl-C again to hurry)")
            await supervisor.stop(GATEWAY)
            state.admin.unlink(missing_ok=True)


async def _gateway_ready(arrangement: Arrangement) -> None:
    """Returns when the gateway has seen for itself that workers are ready; it asks them every second."""
    with suppress(TimeoutError):
        async with asyncio.timeout(READY_S):
            while not await answers(arrangement.host, arrangement.port, "/readyz"):  # noqa: ASYNC110
                await asyncio.sleep(READY_POLL_S)


async def _watched(supervisor: Supervisor, workers: Sequence[str]) -> None:
    """Raises ChildFailed once the gateway or the last worker has been given up; never returns."""
    while True:
        failures = {failure.name: failure for failure in supervisor.failures}
        if GATEWAY in failures:
            raise failures[GATEWAY]
        if all(name in failures for name in workers):
            raise failures[workers[-1]]
        await supervisor.changed()


def _show(news: News, terminal: Switchable) -> None:
    match news.state:
        case State.LOADING:
            started = "starting" if news.name == GATEWAY else Stage.IMPORTING.value
            terminal.doing(news.name, str(news.progress or started))
        case State.STOPPING:
            terminal.doing(news.name, news.note or "stopping")
        case State.READY | State.STOPPED:
            terminal.done(news.name, news.state.value)
        case State.WAITING | State.FAILED:
            terminal.trouble(news.name, news.note)


def _told(error: Exception) -> Iterable[str]:
    """An error as lines: what is wrong, then what helps."""
    match error:
        case CannotStart(obstacles=obstacles):
            for what, remedy in obstacles:
                yield f"pagegate: {what}."
                yield f"  Remedy: {remedy}."
        case ChildFailed(name=name, why=why, diagnosis=diagnosis, last_words=words, log=log):
            yield f"pagegate: {name} was given up: {diagnosis.cause} ({why})."
            if diagnosis.words:
                yield f"  It said: {diagnosis.words}"
            elif words:
                yield from (f"  | {line}" for line in words[-SHOWN_WORDS:])
            yield f"  Remedy: {diagnosis.remedy}."
            yield f"  Its log: {log}"
        case StateInUse(holder=holder):
            yield f"pagegate: {error}."
            end = f"end it (kill {holder})" if holder else "end it"
            yield f"  Remedy: {end}, or choose another folder with PAGEGATE_STATE."
        case SettingsError(source=source, problems=problems):
            yield f"pagegate: {source} cannot be used:"
            yield from (f"  {problem}" for problem in problems)
        case OSError(strerror=reason, filename=file):
            yield f"pagegate: {file or 'the system'}: {reason or error}."
            yield "  Remedy: make room and mend permissions, or choose another folder with PAGEGATE_STATE."
        case _:
            yield f"pagegate: {error}"
