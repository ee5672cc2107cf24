"""The whole configuration as frozen values: one YAML file, overlaid by the environment, checked at once.

The only module that reads the environment. Each part of the gateway receives its own section. Every problem
of a file is named in one `SettingsError`, by its dotted path.
"""

import enum
import os
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

import yaml
from pydantic import (
    AwareDatetime,
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
    disagreements_of_all,
    disagreements_of_identity,
    disagreements_of_model,
    problems_of,
)
from gateway.yaml_text import NotYaml

PREFIX = "PAGEGATE_"
# Variables with the prefix that are not settings: they steer `pagegate up`, not the gateway.
EMBEDDED = frozenset({"PAGEGATE_PORT", "PAGEGATE_BOOTSTRAP_KEY", "PAGEGATE_STATE", "PAGEGATE_CONFIG"})
# The same for the commands that administer a gateway.
ADMINISTERING = frozenset({"PAGEGATE_ADMIN_URL", "PAGEGATE_ADMIN_KEY", "PAGEGATE_ADMIN_KEY_FILE"})

Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]*$")]
Pattern = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^\S+$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0)]
Network = IPv4Network | IPv6Network
LEAST_WEIGHT, MOST_WEIGHT = 0.001, 1000.0
Weight = Annotated[float, Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
HOST_AND_PORT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?")
SHORTEST_SECRET = 16
# What can be counted exactly everywhere, as an integer and as a double (2**53 is more).
MOST_UNITS = 10**15
MOST_COST = 1e9

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


class OnLoss(enum.StrEnum):
    """What holds while the shared state cannot be reached: this gateway's share of the limit, or nothing passes."""

    SHARE = "share"
    REFUSE = "refuse"


class Role(enum.StrEnum):
    """What an administrator may do: read; change keys as well; change anything."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


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
    trusted_proxies: tuple[Network, ...] = Field(
        (),
        description="Addresses or networks of proxies before the gateway: of a call that comes from one of these the "
        "caller's address is what `x-forwarded-for` says last that is none of them. From others it is ignored.",
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
    """Limits of one owner; a limit that is not given does not exist."""

    requests_per_minute: int | None = Field(
        None, ge=1, le=MOST_UNITS, description="Calls a minute, as a bucket that refills evenly."
    )
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        le=MOST_UNITS,
        description="Prompt and completion tokens a minute: estimated before, settled after the call.",
    )
    tokens_per_day: int | None = Field(
        None,
        ge=1,
        le=MOST_UNITS,
        description="The same over a day, coming back evenly: there is no hour at which all is new.",
    )
    concurrent_calls: int | None = Field(None, ge=1, le=MOST_UNITS, description="Calls that may run at the same time.")
    on_loss: OnLoss = Field(
        OnLoss.SHARE,
        description="While Redis cannot be reached: `share` lets this gateway use its part of these limits, `refuse` "
        "lets nothing pass.",
    )


UNLIMITED = Limits()


class LimitRule(Limits):
    """Limits for each key, tenant or model, or each combination of them, that the patterns take in."""

    name: Name = Field(description="The rule's name, by which a refusal names it.")
    per: tuple[Literal["key", "tenant", "model"], ...] = Field(
        (), description="What has a limit of its own: each of these, or each combination. Empty: all calls together."
    )
    keys: tuple[Pattern, ...] = Field(("*",), description="Keys that the rule is for, as shell patterns.")
    tenants: tuple[Pattern, ...] = Field(("*",), description="Tenants that the rule is for, likewise.")
    models: tuple[Pattern, ...] = Field(("*",), description="Models that the rule is for, by canonical name, likewise.")


class Budget(Section):
    """What a tenant may use up in a calendar day or month (UTC). Cost is in the cost unit of `pricing`."""

    tokens_per_day: int | None = Field(None, ge=1, le=MOST_UNITS, description="Prompt and completion tokens a day.")
    tokens_per_month: int | None = Field(None, ge=1, le=MOST_UNITS, description="The same a month.")
    cost_per_day: float | None = Field(None, gt=0, le=MOST_COST, description="Cost units a day.")
    cost_per_month: float | None = Field(None, gt=0, le=MOST_COST, description="The same a month.")
    on_loss: OnLoss = Field(
        OnLoss.SHARE,
        description="While Redis cannot be reached: `share` lets each gateway use its part of what is left, `refuse` "
        "lets nothing pass.",
    )


NO_BUDGET = Budget()


class Priority(enum.StrEnum):
    """Classes of calls before engines that are busy: a lower class waits while a higher one does."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


class KeySettings(Section):
    """An API key, known by its digest alone (`pagegate keys stanza` prints both)."""

    name: Name = Field(description="What the key is called in logs; never the key itself.")
    digest: Digest = Field(description="Keyed BLAKE2b of the key under the identity secret, 64 hexadecimal digits.")
    tenant: Name = Field("default", description="The tenant that the key acts for.")
    models: tuple[Pattern, ...] = Field(
        ("*",), description="Models it may call, as shell patterns on canonical names (not aliases)."
    )
    limits: Limits = Field(UNLIMITED, description="Limits of this key alone.")
    priority: Priority | None = Field(None, description="The class of its calls; default: the tenant's.")
    expires_at: AwareDatetime | None = Field(None, description="When the key ends (RFC 3339, with a time zone).")
    metadata: Metadata = Field({}, description="Up to 16 texts of your own, shown by the admin API.")


class TenantSettings(Section):
    """Who keys act for: the owner of limits, a budget, and a prefix cache of its own."""

    name: Name = Field(description="The tenant's name.")
    models: tuple[Pattern, ...] = Field(
        ("*",), description="Models that any of its keys may call at most, as shell patterns on canonical names."
    )
    limits: Limits = Field(UNLIMITED, description="Limits that all keys of the tenant share.")
    budget: Budget = Field(NO_BUDGET, description="What the tenant may use up.")
    weight: Weight = Field(1.0, description="Its share of busy engines, against other tenants' weights.")
    priority: Priority = Field(Priority.NORMAL, description="The class of its calls before busy engines.")
    metadata: Metadata = Field({}, description="Up to 16 texts of your own, shown by the admin API.")


class ClaimSettings(Section):
    """Where a token says what; each is a name, or a path of names with dots between, e.g. `realm_access.roles`."""

    subject: str = Field("sub", min_length=1, max_length=256, description="Who calls.")
    tenant: str | None = Field(None, description="Whom he acts for; a tenant's name, or a value of `tenants`.")
    models: str | None = Field(None, description="Patterns of the models he may call: a list, or words in one text.")
    role: str | None = Field(None, description="Values of `roles`: a list, or words in one text.")


class IssuerSettings(Section):
    """Who signs tokens (JWT, RFC 7519) that are accepted beside keys."""

    name: Name = Field(description="The issuer's name, with which its subjects are named in logs and limits.")
    issuer: str = Field(min_length=1, max_length=512, description="The `iss` of its tokens, exactly.")
    audiences: tuple[str, ...] = Field(min_length=1, description="A token must be meant for one of these (`aud`).")
    jwks_url: str | None = Field(
        None, description="Where its keys are; without it OpenID Connect discovery at `issuer` tells."
    )
    algorithms: tuple[Algorithm, ...] = Field(
        ("RS256", "ES256", "EdDSA"), min_length=1, description="Signatures that are accepted. No symmetric ones exist."
    )
    authorized_parties: tuple[str, ...] = Field((), description="If given, a token's `azp` must be one of these.")
    leeway_s: float = Field(30, ge=0, le=60, description="By how much clocks may differ.")
    max_lifetime_s: Seconds = Field(
        86_400, description="A token whose `exp` is later than this after `iat` is refused."
    )
    refresh_s: Seconds = Field(300, description="How often the issuer's keys are fetched anew.")
    max_stale_s: Seconds = Field(86_400, description="How long its keys hold if they cannot be fetched any more.")
    claims: ClaimSettings = Field(ClaimSettings(), description="Where its tokens say what.")
    tenants: dict[str, Name] = Field({}, description="Which tenant a value of the tenant claim stands for.")
    default_tenant: Name | None = Field(None, description="The tenant of tokens that name none; without it, refused.")
    default_models: tuple[Pattern, ...] = Field(
        (), description="Models for tokens that name none; without any they may call no model."
    )
    roles: dict[str, Role] = Field({}, description="Which administrative role a value of the role claim stands for.")

    @field_validator("jwks_url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is not None:
            parts = urlsplit(url)
            if "@" in parts.netloc:
                raise ValueError("must have no credentials")
            _check_address(parts)
        return url


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
    issuers: tuple[IssuerSettings, ...] = Field((), description="Who signs tokens that are accepted beside keys.")
    failures_per_minute: int = Field(
        60, ge=1, description="Wrong credentials from one address beyond this are answered 429, whatever they are."
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


class Price(Section):
    """What tokens of a model cost, in cost units for a million."""

    prompt: float = Field(0, ge=0, le=MOST_COST, description="A million prompt tokens.")
    cached: float | None = Field(
        None, ge=0, le=MOST_COST, description="A million prompt tokens that were cached; default: the same."
    )
    completion: float = Field(0, ge=0, le=MOST_COST, description="A million completion tokens.")


class ModelSettings(Section):
    """One model and the pool of replicas that serve it."""

    name: Name = Field(description="The canonical name: what engines serve it as and permissions speak of.")
    aliases: tuple[Name, ...] = Field((), description="Other names that callers may use.")
    replicas: tuple[ReplicaSettings, ...] = Field((), description="The engines that serve it.")
    limits: Limits = Field(UNLIMITED, description="Limits that all callers of the model share.")
    price: Price | None = Field(
        None, description="What its tokens cost. Without it a call costs its share of `pricing.accelerator_hour`."
    )
    accelerators: int = Field(1, ge=1, description="Accelerators of one replica.")
    calls_per_replica: int | None = Field(
        None,
        ge=1,
        description="Calls that one replica runs at once (vLLM: --max-num-seqs). Without it this is learnt from what "
        "engines report.",
    )

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        return _or_problems(self, disagreements_of_model(self.model_dump()))


class AdmissionSettings(Section):
    """What may run, and what a call is thought to cost before it is known."""

    max_running: int = Field(10_000, ge=1, description="Calls that this gateway runs at once; more are answered 503.")
    count_tokens: Literal["estimated", "exact"] = Field(
        "estimated",
        description="How the tokens of a prompt are known before its call: `estimated` from its bytes, by a ratio that "
        "is learnt for each model; `exact` asks an engine's tokenizer, which costs a call that tokens are limited for "
        "a few milliseconds. What is charged in the end is what the engine measured, either way.",
    )
    completion_tokens: int = Field(
        256, ge=1, description="Completion tokens reserved for a call that does not say max_tokens."
    )
    longest_completion: int = Field(
        4096,
        ge=1,
        description="The longest completion of a call that does not say max_tokens, where its tenant has a budget: it "
        "is reserved whole, or as much as is left, and engines are told. Without a budget it may fill its context.",
    )
    max_choices: int = Field(8, ge=1, le=128, description="The largest `n` of a call.")
    allowed_fields: tuple[str, ...] = Field(
        (),
        description="Further fields of a call's body to pass on to engines, e.g. `ignore_eos`, `min_tokens`. "
        "They are not checked: name only what every caller may use.",
    )


class QueueSettings(Section):
    """Where calls wait while every engine of their model is busy."""

    max_waiting: int = Field(1000, ge=0, description="Calls that wait for one model; 0 lets none wait.")
    max_waiting_per_tenant: int = Field(500, ge=1, description="The same of one tenant.")
    max_wait_s: Seconds = Field(30, description="How long a call waits at most; callers' own deadlines may be earlier.")
    backlog: float = Field(
        0.1, ge=0, le=10, description="What engines hold beyond what they can run, as a share of that: their next work."
    )
    kv_ceiling: float = Field(0.95, gt=0, le=1, description="An engine whose KV cache is fuller than this is busy.")


class StoreSettings(Section):
    """The database of keys, tenants, usage and audit."""

    url: SecretStr | None = Field(
        None,
        description="`sqlite:///FILE` for one machine, `postgresql://USER:PASSWORD@HOST/NAME` for many. Without it "
        "keys come from this file alone and usage goes to the log.",
    )
    refresh_s: Seconds = Field(2, description="How soon a change that another gateway made is seen.")
    usage_flush_s: Seconds = Field(1, description="How long usage is held in memory: what a crash may lose.")
    usage_buffer: int = Field(
        100_000,
        ge=100,
        description="Records of usage that are kept while the database is away; more are lost, counted.",
    )
    spool_folder: Path | None = Field(
        None,
        description="Folder for usage that could not be written when the gateway ended; its next start takes it in. "
        "Default: beside the file of SQLite; with PostgreSQL none, and that usage is lost, counted.",
    )
    usage_days: int = Field(400, ge=1, description="How long single records of usage are kept; daily sums stay.")

    @field_validator("url")
    @classmethod
    def _is_known(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("sqlite:///", "postgresql://")):
            raise ValueError("must begin with sqlite:/// or postgresql://")
        return url


class RedisSettings(Section):
    """Where many gateways keep what they share: limits and leases."""

    url: SecretStr | None = Field(
        None,
        description="`redis://[USER:PASSWORD@]HOST[:PORT][/DB]`, `rediss://` with TLS, or `unix://PATH`. Without it "
        "limits are this process's own.",
    )
    prefix: Name = Field("pagegate", description="What the names of all keys there begin with.")
    timeout_s: Seconds = Field(0.02, le=1, description="A call waits no longer than this for Redis.")
    retry_s: Seconds = Field(0.5, description="How often Redis is tried while it is away or slow.")
    lease_s: float = Field(15, ge=1, description="A lease of a gateway that died ends after this time.")

    @field_validator("url")
    @classmethod
    def _is_known(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("must begin with redis://, rediss:// or unix://")
        return url


class PricingSettings(Section):
    """What a call costs where its model has no price: its share of the time of the accelerators that ran it."""

    unit: str = Field("credit", min_length=1, max_length=16, description="What the cost unit is called, e.g. `EUR`.")
    accelerator_hour: float = Field(1.0, ge=0, le=MOST_COST, description="Cost units for an hour of one accelerator.")


class AdminKeySettings(Section):
    """A key for the admin API, known by its digest alone (`pagegate keys stanza --role` prints both)."""

    name: Name = Field(description="Who it is in the audit log.")
    digest: Digest = Field(description="Keyed BLAKE2b of the key under the identity secret, 64 hexadecimal digits.")
    role: Role = Field(Role.VIEWER, description="`viewer` reads, `operator` also changes keys, `admin` all.")


class AdminSettings(Section):
    """The admin API, on a listener of its own."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: Port | None = Field(
        None, description="Port to listen on; without it there is no admin API. 0 takes a free one."
    )
    keys: tuple[AdminKeySettings, ...] = Field((), description="Keys that open it; keys of callers never do.")


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
    limits: tuple[LimitRule, ...] = Field((), description="Limits beyond those of single keys, tenants and models.")
    queue: QueueSettings = QueueSettings()
    pricing: PricingSettings = PricingSettings()
    store: StoreSettings = StoreSettings()
    redis: RedisSettings = RedisSettings()
    admin: AdminSettings = AdminSettings()
    upstream: UpstreamSettings = UpstreamSettings()
    fleet: FleetSettings = FleetSettings()
    telemetry: TelemetrySettings = TelemetrySettings()

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        return _or_problems(self, disagreements_of_all(self.model_dump()))


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
        elif variable in EMBEDDED | ADMINISTERING or not variable.startswith(PREFIX):
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
