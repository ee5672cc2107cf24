"""The whole configuration as frozen values: one YAML file, overlaid by the environment, checked at once.

The only module that reads the environment. Each part of the gateway receives its own section. Every problem
of a file is named in one `SettingsError`, by its dotted path.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from gateway import yaml_text
from gateway.problems import (
    disagreements,
    disagreements_of_identity,
    disagreements_of_model,
    disagreements_of_models,
    problems_of,
)
from gateway.yaml_text import NotYaml

PREFIX = "PAGEGATE_"
# Variables with the prefix that are not settings: they steer `pagegate up`, not the gateway.
EMBEDDED = frozenset({"PAGEGATE_PORT", "PAGEGATE_BOOTSTRAP_KEY", "PAGEGATE_STATE", "PAGEGATE_CONFIG"})

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$")]
Pattern = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^\S+$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
HOST_AND_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")
SHORTEST_SECRET = 16

Checked = TypeVar("Checked")


class SettingsError(Exception):
    """A configuration that cannot be used; `problems` has one line for each thing to mend."""

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.source = source
        self.problems = tuple(problems)
        super().__init__(f"{source}: " + "; ".join(self.problems))


def _or_problems(value: Checked, problems: Iterable[str]) -> Checked:
    found = list(problems)
    if found:
        raise ValueError("\n".join(found))
    return value


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class ServerSettings(Section):
    """Where the gateway listens, and what it accepts from a connection."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port = Field(8080, description="Port to listen on; 0 takes a free one.")
    metrics_host: str = Field("127.0.0.1", description="Address of the metrics listener, where `metrics_port` is set.")
    metrics_port: Port | None = Field(
        None,
        description="A port of its own for /metrics. Without it /metrics is on the main port, for anybody who "
        "reaches that port: set it when `host` is not loopback.",
    )
    max_body_bytes: int = Field(8 * 2**20, ge=1024, description="A longer body is answered 413, unread.")
    max_arriving_bytes: int = Field(
        512 * 2**20,
        ge=2**20,
        description="Room for all bodies that are still on their way; a call that finds none is answered 503.",
    )
    head_timeout_s: Seconds = Field(10, description="A call's head must arrive within this time, also its first one.")
    body_timeout_s: Seconds = Field(30, description="The whole body must arrive within this time.")
    max_connections: int = Field(
        20_000,
        ge=1,
        description="Connections beyond this are answered 503; fewer where the process may not open twice as many "
        "files.",
    )
    max_connections_per_address: int | None = Field(
        None,
        ge=1,
        description="The same for each address that connects. Not for a gateway behind a proxy, whose address is one.",
    )
    keep_alive_s: Seconds = Field(75, description="An idle connection is closed after this time.")
    slow_reader_s: Seconds = Field(
        30,
        description="A caller that does not take up within this time what waits for it loses its connection.",
    )
    drain_delay_s: float = Field(
        0, ge=0, description="After SIGTERM: how long to stay open, unready, so that load balancers notice."
    )
    drain_timeout_s: Seconds = Field(
        30,
        description="After SIGTERM: how long open calls may go on before they are ended with an error event.",
    )


class Limits(Section):
    """Limits of a key or of a tenant; a limit that is not given does not exist."""

    requests_per_minute: int | None = Field(None, ge=1, description="Calls a minute, as a bucket that refills evenly.")
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="Prompt and completion tokens a minute: estimated before, settled after the call.",
    )
    concurrent_calls: int | None = Field(None, ge=1, description="Calls that may run at the same time.")


class KeySettings(Section):
    """An API key, known by its digest alone (`pagegate keys create` prints both)."""

    name: Name = Field(description="What the key is called in logs; never the key itself.")
    digest: Digest = Field(description="Keyed BLAKE2b of the key under the identity secret, 64 hexadecimal digits.")
    tenant: Name = Field("default", description="The tenant that the key acts for.")
    models: tuple[Pattern, ...] = Field(
        ("*",), description="Models it may call, as shell patterns on canonical names (not aliases)."
    )
    limits: Limits = Field(Limits(), description="Limits of this key alone.")


class TenantSettings(Section):
    """Who keys act for: the owner of limits and of a prefix cache of its own."""

    name: Name = Field(description="The tenant's name.")
    limits: Limits = Field(Limits(), description="Limits that all keys of the tenant share.")


class IdentitySettings(Section):
    """Who may call."""

    secret: SecretStr | None = Field(
        None, description="Secret under which keys are hashed; at least 16 characters. Better in a file."
    )
    secret_file: Path | None = Field(None, description="File that holds the secret, readable by the gateway alone.")
    keys: tuple[KeySettings, ...] = Field((), description="The keys that exist.")
    tenants: tuple[TenantSettings, ...] = Field(
        (TenantSettings(name="default"),), description="The tenants that exist."
    )

    @field_validator("secret")
    @classmethod
    def _is_long(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value()) < SHORTEST_SECRET:
            raise ValueError(f"must have at least {SHORTEST_SECRET} characters")
        return secret

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        return _or_problems(self, disagreements_of_identity(self.model_dump()))


class ReplicaSettings(Section):
    """One engine process."""

    name: Name = Field(description="The replica's name in metrics, traces and logs.")
    url: str = Field(description="Where the engine listens, e.g. `http://127.0.0.1:9101`; without a path.")
    api_key: SecretStr | None = Field(None, description="The engine's own key, where it wants one.")

    @field_validator("url")
    @classmethod
    def _is_an_origin(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.path not in ("", "/") or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError("must have no path, query or credentials")
        _check_address(parts)
        return f"{parts.scheme}://{parts.netloc}"


class ModelSettings(Section):
    """One model and the pool of replicas that serve it."""

    name: Name = Field(description="The canonical name: what engines serve it as and permissions speak of.")
    aliases: tuple[Name, ...] = Field((), description="Other names that callers may use.")
    replicas: tuple[ReplicaSettings, ...] = Field((), description="The engines that serve it.")

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        return _or_problems(self, disagreements_of_model(self.model_dump()))


class AdmissionSettings(Section):
    """What may run, and what a call is thought to cost before it is known."""

    max_running: int = Field(10_000, ge=1, description="Calls that this gateway runs at once; more are answered 503.")
    completion_tokens: int = Field(
        256, ge=1, description="Completion tokens reserved for a call that does not say max_tokens."
    )
    max_choices: int = Field(8, ge=1, le=128, description="The largest `n` of a call.")
    allowed_fields: tuple[str, ...] = Field(
        (),
        description="Further fields of a call's body to pass on to engines, e.g. `ignore_eos`, `min_tokens`. "
        "They are not checked: name only what every caller may use.",
    )


class RoutingSettings(Section):
    """How replicas are ranked: the weight of each scorer, 0 to leave it out."""

    idleness: float = Field(1.0, ge=0, description="Prefer replicas with few calls running and waiting.")
    free_kv: float = Field(0.5, ge=0, description="Prefer replicas with free KV cache.")


class UpstreamSettings(Section):
    """How engines are called."""

    connect_timeout_s: Seconds = Field(2, description="For a connection to an engine.")
    first_token_timeout_s: Seconds = Field(120, description="From sending a call to the engine's first event.")
    gap_timeout_s: Seconds = Field(60, description="Between two events of a stream.")
    call_timeout_s: Seconds = Field(1800, description="For the whole call.")
    attempts: int = Field(3, ge=1, le=10, description="How often a call is tried before its first byte.")
    backoff_s: Seconds = Field(0.05, description="First pause once every replica was tried; doubles, with jitter.")
    idle_connection_s: Seconds = Field(
        4,
        description="An unused connection is closed after this time; less than the engine's own (vLLM: 5 s).",
    )
    max_reply_bytes: int = Field(64 * 2**20, ge=1024, description="The longest reply, or event, from an engine.")


class FleetSettings(Section):
    """How replicas are watched."""

    probe_interval_s: Seconds = Field(1, description="Between two probes of a replica.")
    probe_timeout_s: Seconds = Field(2, description="For one answer to a probe.")
    failures_to_down: int = Field(2, ge=1, description="Failed probes in a row that take a replica out.")


class TelemetrySettings(Section):
    """What is told about calls, and where."""

    service_name: str = Field("pagegate", description="`service.name` in traces.")
    otlp_endpoint: str | None = Field(
        None,
        description="Base URL of an OpenTelemetry collector that speaks OTLP over HTTP, e.g. "
        "`http://127.0.0.1:4318`. Without it nothing is traced.",
    )
    sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of calls that are traced.")
    join_callers_trace: bool = Field(
        True, description="Adopt a caller's traceparent. Switch off where callers are not trusted to choose."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Lowest level that is logged.")
    log_calls: bool = Field(True, description="One log line for each call.")

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if not url:
            return None
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise ValueError("must have no credentials")
        _check_address(parts)
        return url.rstrip("/")


class Settings(Section):
    """The whole configuration."""

    server: ServerSettings = ServerSettings()
    identity: IdentitySettings = IdentitySettings()
    models: tuple[ModelSettings, ...] = Field((), description="The models that can be called.")
    admission: AdmissionSettings = AdmissionSettings()
    routing: RoutingSettings = RoutingSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    fleet: FleetSettings = FleetSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        return _or_problems(self, disagreements_of_models(self.model_dump()["models"]))


class Embedded(Section):
    """What the environment says to `pagegate up` beyond settings."""

    port: Port | None = None
    bootstrap_key: SecretStr | None = None
    state: Path = Path(".pagegate")
    config: Path | None = None


def load(path: Path | None, environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from a file (None: defaults) overlaid by `PAGEGATE_SECTION__FIELD` variables.

    Raises SettingsError with every problem; relative paths in the file are relative to the file.
    """
    source = str(path) if path else "the environment"
    raw: object = {}
    if path is not None:
        try:
            raw = yaml_text.parse(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise SettingsError(source, ["there is no such file"]) from None
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(source, [f"cannot be read: {error}"]) from None
        except NotYaml as error:
            raise SettingsError(source, [f"is not YAML: {error}"]) from None
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise SettingsError(source, [f"must be a mapping of sections (was a {type(raw).__name__})"])
    return parse(overlay(raw, os.environ if environ is None else environ), source, path.parent if path else Path())


def parse(raw: Mapping[str, Any], source: str, folder: Path) -> Settings:
    """Settings from parsed YAML; raises SettingsError with every problem."""
    given = {name: section for name, section in raw.items() if section is not None}
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        # Sections are only compared where all of their values are good: here they are compared as well as can be.
        raise SettingsError(source, dict.fromkeys([*problems_of(error), *disagreements(given)])) from None
    identity = settings.identity
    if identity.secret_file is not None and not identity.secret_file.is_absolute():
        identity = identity.model_copy(update={"secret_file": folder / identity.secret_file})
        settings = settings.model_copy(update={"identity": identity})
    return settings


def overlay(raw: Mapping[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    """`raw` with `PAGEGATE_SERVER__PORT=9000` put at `server.port`; values are read as YAML.

    `PAGEGATE_PORT` is short for `PAGEGATE_SERVER__PORT`.
    """
    result: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items()}
    for variable, text in sorted(environ.items()):
        if variable == "PAGEGATE_PORT":
            path = ["server", "port"]
        elif variable in EMBEDDED or not variable.startswith(PREFIX):
            continue
        else:
            path = variable.removeprefix(PREFIX).lower().split("__")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if not isinstance(value, (str, list, dict, type(None))):
            value = text  # A secret of digits is text; where a number is meant, its text is as good.
        place = result
        for step in path[:-1]:
            inner = place.get(step)
            place[step] = place = dict(inner) if isinstance(inner, dict) else {}
        place[path[-1]] = value
    return result


def environment() -> dict[str, str]:
    """The environment as it is now: for what is handed on to child processes."""
    return dict(os.environ)


def embedded(environ: Mapping[str, str] | None = None) -> Embedded:
    """What `pagegate up` reads from the environment; raises SettingsError."""
    environ = os.environ if environ is None else environ
    given = {
        name.removeprefix(PREFIX).lower(): environ[name] for name in sorted(EMBEDDED) if environ.get(name, "") != ""
    }
    try:
        return Embedded.model_validate(given)
    except ValidationError as error:
        problems = [re.sub(r"^[a-z_]+", lambda match: PREFIX + match[0].upper(), line) for line in problems_of(error)]
        raise SettingsError("the environment", problems) from None


def secret_of(identity: IdentitySettings) -> bytes:
    """The secret under which keys are hashed; empty where there are no keys. Raises SettingsError."""
    if identity.secret is not None:
        return identity.secret.get_secret_value().encode()
    if identity.secret_file is None:
        return b""
    try:
        secret = identity.secret_file.read_bytes().strip()
    except OSError as error:
        raise SettingsError(
            "identity.secret_file", [f"cannot be read: {error.strerror or error} ({identity.secret_file})"]
        ) from None
    if len(secret) < SHORTEST_SECRET:
        raise SettingsError(
            "identity.secret_file", [f"must hold at least {SHORTEST_SECRET} bytes (holds {len(secret)})"]
        )
    return secret


def _check_address(parts: SplitResult) -> None:
    if parts.scheme not in ("http", "https") or not HOST_AND_PORT.fullmatch(parts.netloc):
        raise ValueError("must begin with http://host:port or https://host:port")
    if parts.port is not None and parts.port < 1:
        raise ValueError("must have a port from 1 to 65535")
