"""A spec as vLLM is told it: command-line options and environment variables.

Pure: the same spec always gives the same command. Options are given even where vLLM's default is meant, so
that a new version of vLLM does not change a worker silently. Prompts are never logged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from engine_config.spec import EngineSpec, KvCache, Lora, Multimodal, Speculation, Tracing

KV_EVENTS_PORT = 5557
KV_REPLAY_PORT = 5558

# Matches no host, so that media must come inside the call; an empty list would allow every host.
_NO_MEDIA_DOMAIN = "media.invalid"


def worker_args(
    spec: EngineSpec, model_path: str, host: str = "127.0.0.1", port: int = 8000, ipc_dir: Path | None = None
) -> list[str]:
    """Options for vLLM's API server.

    Args:
        spec: What to start.
        model_path: Folder of the model, or the name by which vLLM finds it.
        host: Address to listen on; loopback unless a network of its own protects the worker.
        port: Port to listen on.
        ipc_dir: Folder for this worker's event sockets, used on a loopback host; without one no events are
            published there. On any other host they are published on TCP ports.
    """
    return [
        *("--model", model_path),
        *("--served-model-name", *spec.served_names),
        *("--host", host),
        *("--port", str(port)),
        *_model(spec),
        *_parallelism(spec),
        *_kv_cache(spec.kv_cache, kv_endpoints(host, ipc_dir)),
        *_scheduling(spec),
        *_chat(spec),
        *(_lora(spec.lora) if spec.lora else ("--no-enable-lora",)),
        *(_speculation(spec.speculation) if spec.speculation else ()),
        *_multimodal(spec.multimodal),
        *(("--otlp-traces-endpoint", traces_endpoint(spec.tracing)) if spec.tracing else ()),
        *_service(spec),
    ]


def worker_env(spec: EngineSpec, gpus: Sequence[str] = ()) -> dict[str, str]:
    """Variables to add to the worker's environment, by name.

    Args:
        spec: What to start.
        gpus: Indices or UUIDs of the assigned GPUs; empty leaves the choice to the machine.
    """
    env = {
        "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1",
        # Longer than any pooled connection of the gateway: it is the gateway that closes idle ones.
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": "120",
        "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if spec.accelerator.device.is_gpu:
        if gpus:
            # Numbered as nvidia-smi does; CUDA would put the fastest first.
            env |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    else:
        env["VLLM_CPU_OMP_THREADS_BIND"] = spec.accelerator.cpu_cores
    if spec.tracing:
        env["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = spec.tracing.protocol
        env["OTEL_SERVICE_NAME"] = spec.name
    return dict(sorted({**spec.environment, **env}.items()))


def kv_endpoints(host: str, ipc_dir: Path | None) -> tuple[str, str] | None:
    """Where a worker publishes KV events and where it replays them; None when nowhere.

    vLLM binds an event port to all addresses or to none, so a worker on loopback uses sockets in a folder.
    """
    if not _is_loopback(host):
        return f"tcp://*:{KV_EVENTS_PORT}", f"tcp://*:{KV_REPLAY_PORT}"
    if ipc_dir is None:
        return None
    return f"ipc://{ipc_dir}/kv-events", f"ipc://{ipc_dir}/kv-replay"


def traces_endpoint(tracing: Tracing) -> str:
    """The URL that vLLM's exporter posts to: over HTTP it is used as it is, so the path is added."""
    base = tracing.otlp_endpoint.rstrip("/")
    if tracing.protocol == "grpc" or base.count("/") > 2:
        return base
    return f"{base}/v1/traces"


def fingerprint(spec: EngineSpec) -> str:
    """Names the configuration in `system_fingerprint` without telling versions or hardware."""
    return "fp_" + hashlib.sha256(spec.model_dump_json().encode()).hexdigest()[:10]


def _model(spec: EngineSpec) -> Iterator[str]:
    yield from ("--runner", "generate") if spec.task == "generate" else ("--runner", "pooling")
    yield from ("--convert", "none" if spec.task == "generate" else "embed")
    yield from ("--load-format", spec.model.load_format)
    yield "--no-trust-remote-code"
    yield from ("--dtype", spec.dtype)
    yield from ("--max-model-len", str(spec.context_tokens))
    yield "--enforce-eager" if spec.eager else "--no-enforce-eager"
    if spec.model.tokenizer:
        yield from ("--tokenizer", spec.model.tokenizer)
    if spec.quantization:
        yield from ("--quantization", spec.quantization.method)


def _parallelism(spec: EngineSpec) -> Iterator[str]:
    yield from ("--tensor-parallel-size", str(spec.parallelism.tensor))
    yield from ("--pipeline-parallel-size", str(spec.parallelism.pipeline))
    yield from ("--data-parallel-size", str(spec.parallelism.data))
    yield _switch("enable-expert-parallel", spec.parallelism.expert)


def _kv_cache(cache: KvCache, endpoints: tuple[str, str] | None) -> Iterator[str]:
    yield from ("--block-size", str(cache.block_size))
    yield from ("--kv-cache-dtype", cache.dtype)
    if cache.memory_bytes is not None:
        yield from ("--kv-cache-memory-bytes", str(cache.memory_bytes))
    if cache.memory_fraction is not None:
        yield from ("--gpu-memory-utilization", str(cache.memory_fraction))
    yield _switch("enable-prefix-caching", cache.prefix_caching)
    if cache.events and endpoints:
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": endpoints[0],
            "replay_endpoint": endpoints[1],
            "buffer_steps": cache.events_buffer_batches,
        }
        yield from ("--kv-events-config", _json(events))


def _scheduling(spec: EngineSpec) -> Iterator[str]:
    step = spec.scheduling
    yield from ("--max-num-seqs", str(step.max_sequences))
    yield from ("--max-num-batched-tokens", str(step.max_batched_tokens))
    yield _switch("enable-chunked-prefill", step.chunked_prefill)
    yield from ("--scheduling-policy", "priority" if step.priority else "fcfs")
    if step.max_in_flight is not None:
        yield from ("--max-num-queued-reqs", str(step.max_in_flight))


def _chat(spec: EngineSpec) -> Iterator[str]:
    yield "--no-trust-request-chat-template"
    yield "--no-trust-request-mm-kwargs"
    if spec.chat.template_path:
        yield from ("--chat-template", spec.chat.template_path)
    if spec.chat.tool_parser:
        yield from ("--enable-auto-tool-choice", "--tool-call-parser", spec.chat.tool_parser)
    if spec.chat.reasoning_parser:
        yield from ("--reasoning-parser", spec.chat.reasoning_parser)


def _lora(lora: Lora) -> Iterator[str]:
    yield "--enable-lora"
    yield from ("--max-loras", str(lora.max_adapters))
    yield from ("--max-lora-rank", str(lora.max_rank))
    if lora.max_cpu_adapters is not None:
        yield from ("--max-cpu-loras", str(lora.max_cpu_adapters))
    if lora.adapters:
        modules = (_json({"name": name, "path": path}) for name, path in lora.adapters.items())
        yield from ("--lora-modules", *modules)


def _speculation(speculation: Speculation) -> Iterator[str]:
    config: dict[str, Any] = {
        "method": speculation.method,
        "num_speculative_tokens": speculation.tokens,
    }
    if speculation.model:
        config["model"] = speculation.model
    if speculation.method == "ngram":
        config["prompt_lookup_min"] = speculation.ngram_min
        config["prompt_lookup_max"] = speculation.ngram_max
    yield from ("--speculative-config", _json(config))


def _multimodal(multimodal: Multimodal | None) -> Iterator[str]:
    if multimodal is None:
        yield "--language-model-only"
        return
    limits = {"image": multimodal.images, "video": multimodal.videos, "audio": multimodal.audios}
    yield from ("--limit-mm-per-prompt", _json(limits))
    yield from ("--allowed-media-domains", *(multimodal.media_domains or (_NO_MEDIA_DOMAIN,)))


def _service(spec: EngineSpec) -> Iterator[str]:
    yield from ("--shutdown-timeout", str(spec.shutdown_grace_s))
    yield "--enable-prompt-tokens-details"
    yield "--disable-fastapi-docs"
    yield "--disable-uvicorn-access-log"
    yield from ("--no-enable-log-requests", "--no-enable-log-outputs", "--max-log-len", "0")
    yield from ("--fingerprint-mode", "custom", "--fingerprint-value", fingerprint(spec))


def _switch(name: str, on: bool) -> str:
    return f"--{name}" if on else f"--no-{name}"


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
