"""The benchmark's command line: what is chosen, and one clear message for every mistake."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from benchmarks import cli
from benchmarks.findings import QUICK_SIZE, Size
from benchmarks.gateways import READY_MADE, Site, given, pagegate_settings
from benchmarks.processes import Trouble
from benchmarks.running import Plan
from benchmarks.scenarios import named
from gateway.settings import parse


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(
        port=8001,
        spare_port=8002,
        engines=["http://127.0.0.1:9101", "http://127.0.0.1:9102"],
        model="mock-model",
        key="sk-bench",
        secret="a-secret-of-the-benchmark",
        traces="http://127.0.0.1:4318",
        folder=tmp_path,
        most=40,
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: cli.chosen_gateways(["nonsense"], None, None, None, Console()), "no ready-made gateway nonsense"),
        (lambda: cli.chosen_gateways(["direct"], ["direct=http://x"], None, None, Console()), "a direct already"),
        (lambda: cli.chosen_gateways(["direct"], None, ["x=A: b"], None, Console()), "there is no --gateway x"),
        (lambda: cli.chosen_gateways(["direct"], None, ["x"], None, Console()), "a header are needed"),
        (lambda: cli.chosen_gateways(["direct"], None, None, ["direct"], Console()), "needs no installation"),
        (lambda: cli.chosen_scenarios(["nonsense"], quick=False, real=False), "no scenario nonsense"),
        (lambda: cli.chosen_scenarios(["open-999999"], quick=False, real=False), "no scenario open-999999"),
        (lambda: cli.chosen_scenarios(["bursts"], quick=False, real=True), "cannot be measured before a real engine"),
        (lambda: cli.real_engine("http://x", None), "--model"),
        (lambda: cli.real_engine("ftp://x", "m"), "--engine http://"),
        (lambda: given("mine", {}), "a name and a URL or a command"),
        (lambda: given("mine=https://x", {}), "TLS"),
        (lambda: cli.read(Path("gone.json")), "gone.json cannot be shown"),
    ],
)
def test_a_mistake_is_named(wrong: Callable[[], object], said: str) -> None:
    """Before anything is started."""
    with pytest.raises(Trouble, match=said):
        wrong()


def test_a_gateway_can_be_given_by_its_url(site: Site) -> None:
    """With headers of its own."""
    entry = given("mine=http://127.0.0.1:8000/", {"mine": [("authorization", "Bearer x")]})
    assert (entry.url, entry.launch, entry.headers(site)) == (
        "http://127.0.0.1:8000",
        None,
        (("authorization", "Bearer x"),),
    )


def test_a_gateway_can_be_given_by_its_command(site: Site) -> None:
    """Places in it are filled; what has no place is left alone."""
    entry = given("mine=run --port {port} --to {engines} --name '{model} x' {other}", {})
    assert entry.launch is not None
    assert entry.launch(site).command == [
        *("run", "--port", "8001", "--to", "http://127.0.0.1:9101", "http://127.0.0.1:9102"),
        *("--name", "mock-model x", "{other}"),
    ]
    assert entry.headers(site) == ()


def test_another_pagegate_can_be_given_by_its_command(site: Site) -> None:
    """Its settings are written for it, and calls carry the key that is in them."""
    entry = given("old=pagegate serve --config {settings}", {})
    assert entry.launch is not None
    path = Path(entry.launch(site).command[-1])
    assert path.exists()
    assert entry.headers(site) == (("authorization", "Bearer sk-bench"),)
    assert entry.ready == "/readyz"


def test_our_settings_are_good_and_have_everything_on(site: Site) -> None:
    """The gateway's own settings take them: key, every limit on key and tenant, traces, and what may run."""
    path = pagegate_settings(site, log_calls=False)
    settings = parse(yaml.safe_load(path.read_text()), str(path), path.parent)
    (key,), (tenant,) = settings.identity.keys, settings.identity.tenants
    for limits in (key.limits, tenant.limits):
        assert limits.requests_per_minute and limits.tokens_per_minute and limits.concurrent_calls
    assert settings.models[0].calls_per_replica == 20
    assert settings.queue.max_wait_s < 0.5
    assert (settings.telemetry.log_calls, settings.telemetry.sample_ratio) == (False, 0.01)
    assert settings.telemetry.otlp_endpoint == "http://127.0.0.1:4318"
    assert len(settings.models[0].replicas) == 2


@pytest.mark.parametrize("name", [name for name, entry in READY_MADE.items() if entry.launch is not None])
def test_every_ready_made_gateway_is_started_on_its_port_before_both_engines(name: str, site: Site) -> None:
    """In its command or in a file that the command names."""
    entry = READY_MADE[name]
    assert entry.launch is not None
    said = " ".join(entry.launch(site).command)
    said += "".join(path.read_text() for path in site.folder.iterdir())
    for port in ("8001", "9101", "9102"):
        assert port in said


def test_a_plan_knows_how_long_it_takes() -> None:
    """A quick look at three gateways is done in about a minute; no gateway at all is not overloaded."""
    names = ("plain", "latency", "streams", "bursts", "open-1000", "leave")
    entries = [READY_MADE[name] for name in ("direct", "passthrough", "pagegate")]
    plan = Plan(entries=entries, scenarios=[named(name) for name in names], size=QUICK_SIZE, repetitions=1)
    assert 40 <= plan.seconds <= 75
    alone = Plan(entries=entries[:1], scenarios=[named("overload")], size=Size(), repetitions=1)
    assert alone.seconds < 10


def test_options_may_hold_commas_and_be_repeated() -> None:
    """Both ways are natural."""
    assert cli.words(["a,b", " c "]) == ["a", "b", "c"]
    assert cli.words(None) == []
