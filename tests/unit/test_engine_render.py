"""A spec as vLLM is told it: golden texts for the profiles, and the promises that hold for any spec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engine_config import catalog
from engine_config.helm import helm_values
from engine_config.problems import errors
from engine_config.render import fingerprint, kv_endpoints, traces_endpoint, worker_args, worker_env
from engine_config.spec import EngineSpec, Tracing
from tests.unit import engine_golden
from tests.unit.engine_specs import spec

EVENTS = {"kv_cache.events": True}


def option(arguments: list[str], name: str) -> list[str] | None:
    """The values of an option; None when it is not given."""
    if name not in arguments:
        return None
    rest = arguments[arguments.index(name) + 1 :]
    end = next((index for index, value in enumerate(rest) if value.startswith("--")), len(rest))
    return rest[:end]


def args(changes: dict[str, Any] | None = None, **where: Any) -> list[str]:
    return worker_args(spec(changes), "/model", **where)


@pytest.mark.parametrize("name", catalog.names())
def test_a_profile_gives_its_golden_text(name: str) -> None:
    """What changes in arguments, environment, chart values or plan is seen in the difference of a file."""
    assert engine_golden.text(name) == engine_golden.path(name).read_text("utf-8")


def test_there_is_a_golden_text_for_every_profile_and_none_besides() -> None:
    """A profile that is gone leaves nothing behind."""
    kept = sorted(path.stem.removeprefix("engine_") for path in engine_golden.FOLDER.glob("engine_*.yaml"))
    assert kept == catalog.names()


def test_a_worker_listens_on_loopback_unless_it_is_told_otherwise() -> None:
    """vLLM's own default is every address."""
    assert option(args(), "--host") == ["127.0.0.1"]
    assert option(args(host="10.0.0.1", port=9), "--host") == ["10.0.0.1"]


def test_prompts_are_never_logged_and_nothing_is_documented_or_executed() -> None:
    """Whatever the spec says."""
    for flag in (
        "--no-enable-log-requests",
        "--no-enable-log-outputs",
        "--disable-fastapi-docs",
        "--no-trust-remote-code",
        "--no-trust-request-chat-template",
        "--no-trust-request-mm-kwargs",
        "--enable-prompt-tokens-details",
    ):
        assert option(args(), flag) == []
    assert option(args(), "--max-log-len") == ["0"]
    assert option(args(), "--load-format") == ["safetensors"]


def test_events_go_to_sockets_of_the_worker_alone() -> None:
    """On loopback they need a folder: vLLM binds an event port to all addresses or to none."""
    (config,) = option(args(EVENTS, ipc_dir=Path("/run/w")), "--kv-events-config") or []
    told = json.loads(config)
    assert (told["endpoint"], told["replay_endpoint"]) == ("ipc:///run/w/kv-events", "ipc:///run/w/kv-replay")
    assert option(args(EVENTS), "--kv-events-config") is None
    assert option(args(ipc_dir=Path("/run/w")), "--kv-events-config") is None


def test_events_of_a_pod_go_to_ports() -> None:
    """There the network policy decides who reaches them, and the gateway is on another machine."""
    (config,) = option(args(EVENTS, host="0.0.0.0", ipc_dir=Path("/run/w")), "--kv-events-config") or []
    assert json.loads(config)["endpoint"] == "tcp://*:5557"


def test_media_comes_inside_the_call_unless_hosts_are_named() -> None:
    """vLLM takes an empty list for every host."""
    assert option(args(), "--language-model-only") == []
    images = args({"multimodal": {"images": 2}})
    assert json.loads((option(images, "--limit-mm-per-prompt") or [""])[0]) == {"image": 2, "video": 0, "audio": 0}
    assert option(images, "--allowed-media-domains") == ["media.invalid"]
    named = args({"multimodal": {"images": 2, "media_domains": ["img.example"]}})
    assert option(named, "--allowed-media-domains") == ["img.example"]


def test_optional_parts_are_said_when_they_are_asked_for() -> None:
    """Adapters, guesses, priorities, tools, tokenizers, quantization."""
    told = args(
        {
            "lora": {"max_adapters": 2, "max_rank": 32, "max_cpu_adapters": 4, "adapters": {"a": "/a"}},
            "speculation": {"method": "ngram", "tokens": 3},
            "scheduling.priority": True,
            "scheduling.max_in_flight": 300,
            "chat": {"tool_parser": "hermes", "reasoning_parser": "qwen3", "template_path": "/t.jinja"},
            "model.tokenizer": "/tokenizer",
            "quantization": {"method": "fp8_per_tensor"},
            "tracing": {"otlp_endpoint": "http://127.0.0.1:4318"},
        }
    )
    assert option(told, "--lora-modules") == ['{"name":"a","path":"/a"}']
    assert option(told, "--max-lora-rank") == ["32"]
    assert option(told, "--max-cpu-loras") == ["4"]
    assert json.loads((option(told, "--speculative-config") or [""])[0])["prompt_lookup_max"] == 5
    assert option(told, "--scheduling-policy") == ["priority"]
    assert option(told, "--max-num-queued-reqs") == ["300"]
    assert option(told, "--tool-call-parser") == ["hermes"]
    assert option(told, "--reasoning-parser") == ["qwen3"]
    assert option(told, "--chat-template") == ["/t.jinja"]
    assert option(told, "--tokenizer") == ["/tokenizer"]
    assert option(told, "--quantization") == ["fp8_per_tensor"]
    assert option(told, "--otlp-traces-endpoint") == ["http://127.0.0.1:4318/v1/traces"]


def test_adapters_may_come_later() -> None:
    """Room is set aside for them, none is named."""
    told = args({"lora": {}})
    assert option(told, "--max-loras") == ["1"]
    assert option(told, "--lora-modules") is None
    assert option(told, "--max-cpu-loras") is None


def test_a_draft_model_is_named() -> None:
    """The n-gram settings are for n-grams."""
    told = args({"speculation": {"method": "eagle3", "tokens": 3, "model": "/draft"}})
    config = json.loads((option(told, "--speculative-config") or [""])[0])
    assert config == {"method": "eagle3", "num_speculative_tokens": 3, "model": "/draft"}


def test_an_embedding_model_is_converted() -> None:
    """vLLM is not left to guess what a causal model is for."""
    told = args({"task": "embed"})
    assert option(told, "--runner") == ["pooling"]
    assert option(told, "--convert") == ["embed"]


@pytest.mark.parametrize(
    ("endpoint", "protocol", "told"),
    [
        ("http://h:4318", "http/protobuf", "http://h:4318/v1/traces"),
        ("http://h:4318/", "http/protobuf", "http://h:4318/v1/traces"),
        ("http://h:4318/otlp/v1/traces", "http/protobuf", "http://h:4318/otlp/v1/traces"),
        ("http://h:4317", "grpc", "http://h:4317"),
    ],
)
def test_the_exporter_gets_the_url_that_it_posts_to(endpoint: str, protocol: Any, told: str) -> None:
    """Over HTTP vLLM's exporter uses the URL as it is."""
    assert traces_endpoint(Tracing(otlp_endpoint=endpoint, protocol=protocol)) == told


def test_the_environment_is_quiet_offline_and_assigned() -> None:
    """Nothing is reported to anybody, nothing is fetched, and only the assigned GPUs are seen."""
    env = worker_env(spec({"environment": {"NCCL_DEBUG": "WARN"}}), ["2", "3"])
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("2,3", "PCI_BUS_ID")
    assert {env[name] for name in ("DO_NOT_TRACK", "HF_HUB_OFFLINE", "VLLM_NO_USAGE_STATS")} == {"1"}
    assert env["NCCL_DEBUG"] == "WARN"
    assert "CUDA_VISIBLE_DEVICES" not in worker_env(spec())


def test_the_engine_exports_spans_in_the_protocol_of_the_receiver() -> None:
    """Under the profile's name."""
    env = worker_env(spec({"tracing": {"otlp_endpoint": "http://h:4317", "protocol": "grpc"}}))
    assert env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] == "grpc"
    assert env["OTEL_SERVICE_NAME"] == "sound"


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("pod-3", False),
    ],
)
def test_loopback_is_known_by_address_and_by_name(host: str, is_loopback: bool) -> None:
    """What is not known to be loopback is a network."""
    assert (kv_endpoints(host, None) is None) is is_loopback


def test_a_cpu_worker_is_bound_to_its_cores() -> None:
    """Two workers on one machine would share a core otherwise."""
    on_cpu = spec({"accelerator": {"kind": "cpu", "cpu_cores": "0-3"}, "kv_cache": {"memory_bytes": "8GiB"}})
    env = worker_env(on_cpu, ["0"])
    assert env["VLLM_CPU_OMP_THREADS_BIND"] == "0-3"
    assert "CUDA_VISIBLE_DEVICES" not in env


def test_the_spec_cannot_override_what_is_always_set() -> None:
    """Even if a rule were missed."""
    sly = spec().model_copy(update={"environment": {"HF_HUB_OFFLINE": "0"}})
    assert worker_env(sly)["HF_HUB_OFFLINE"] == "1"


def test_the_fingerprint_names_the_configuration_and_nothing_else() -> None:
    """It changes with the spec; it tells neither version nor hardware."""
    assert fingerprint(spec()) == fingerprint(spec())
    assert fingerprint(spec()) != fingerprint(spec({"context_tokens": 4096}))
    assert option(args(), "--fingerprint-value") == [fingerprint(spec())]


def test_the_chart_starts_the_worker_that_a_machine_starts() -> None:
    """The mounted spec is the spec, so that what was checked is what runs."""
    values = helm_values(spec(EVENTS))
    assert EngineSpec.model_validate_json(json.dumps(values["engineSpec"])) == spec(EVENTS)
    assert values["args"][0] == "/etc/pagegate/engine.yaml"
    assert values["ports"] == {"http": 8000, "kv-events": 5557, "kv-replay": 5558}
    assert helm_values(spec())["ports"] == {"http": 8000}


def test_the_chart_waits_as_long_as_the_spec_says() -> None:
    """Start-up probes cover the start-up timeout, termination covers the grace."""
    values = helm_values(spec({"startup_timeout_s": 61, "shutdown_grace_s": 40}))
    assert values["startupProbe"]["periodSeconds"] * values["startupProbe"]["failureThreshold"] >= 61
    assert values["terminationGracePeriodSeconds"] > 40


def test_the_chart_asks_for_the_hardware_of_the_spec() -> None:
    """GPUs by number and kind; a CPU pod by what the plan says it needs."""
    values = helm_values(spec({"parallelism.tensor": 2}))
    assert values["resources"]["limits"]["nvidia.com/gpu"] == "2"
    assert values["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    cpu = helm_values(spec({"accelerator.kind": "cpu", "kv_cache": {"memory_bytes": "8GiB"}}))
    assert cpu["image"] == {"kind": "cpu"}
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]


@pytest.mark.parametrize("name", catalog.names())
def test_chart_values_are_plain_data(name: str) -> None:
    """They go through YAML and JSON unharmed, and the spec inside is as sound as the profile."""
    values = helm_values(catalog.load(name))
    assert json.loads(json.dumps(values)) == values
    again = catalog.examine_text(json.dumps(values["engineSpec"]), "values")
    assert errors(again.problems) == []
