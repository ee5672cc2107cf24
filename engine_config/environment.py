"""Which environment variables a worker may be given, and which it keeps of its parent's.

Owns the names that would open an engine to whoever reaches it, and those that a field of the spec already
decides. What is set for a spec is decided in `render`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# Variables that are refused in a profile and dropped when they are inherited.
_DANGEROUS: Mapping[str, str] = {
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "lets whoever reaches the engine's sockets run code",
    "VLLM_SERVER_DEV_MODE": "opens routes that read and replace the engine's state",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "lets whoever reaches the engine load files as adapters",
    "VLLM_ENABLE_RESPONSES_API_STORE": "keeps replies in memory for whoever guesses their id",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "writes what the model answers into the log",
    "VLLM_TRACE_FUNCTION": "writes every function call, with its values, into files",
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "lets calls use positions that the model was never trained on",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "keeps a worker answering after its engine has died",
    "VLLM_PLUGINS": "loads code into the engine by name",
    "VLLM_MEDIA_CONNECTOR": "replaces the code that fetches media",
    "VLLM_MODEL_REDIRECT_PATH": "serves other files than the spec names",
}

# Refused in a profile; an operator who sets them for a machine or an image means them.
_LOADS_CODE = frozenset({"LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME"})

_FROM_SPEC: Mapping[str, str] = {
    "CUDA_DEVICE_ORDER": "is always PCI_BUS_ID, the order of nvidia-smi",
    "CUDA_VISIBLE_DEVICES": "follows from the GPUs that the worker is assigned",
    "VLLM_CPU_KVCACHE_SPACE": "is said by kv_cache.memory_bytes",
    "VLLM_CPU_OMP_THREADS_BIND": "is said by accelerator.cpu_cores",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "is said by tracing.protocol",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "is said by tracing.otlp_endpoint",
    "VLLM_MEDIA_URL_ALLOW_REDIRECTS": "is always off: a redirect would leave multimodal.media_domains",
    "HF_HUB_OFFLINE": "is always on: the files are fetched and checked before the engine starts",
    "VLLM_NO_USAGE_STATS": "is always on",
    "DO_NOT_TRACK": "is always on",
    "VLLM_RPC_BASE_PATH": "is the worker's own folder for sockets",
    "VLLM_WORKER_MULTIPROC_METHOD": "is always spawn",
}

# Secrets do not belong into a file that is committed; a worker inherits them.
_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|API_KEY|ACCESS_KEY)(_|$)")

# What an operator may decide for all workers of a machine; every other VLLM_ variable is the spec's business.
_INHERITED = frozenset({"VLLM_API_KEY", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "VLLM_HOST_IP", "VLLM_LOGGING_LEVEL"})


def reserved_reason(name: str) -> str | None:
    """Why a profile may not set this variable; None when it may."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return "is not the name of a variable"
    if name in _DANGEROUS:
        return f"is refused: it {_DANGEROUS[name]}"
    if name in _LOADS_CODE:
        return "is refused: it loads other code into the engine"
    if name in _FROM_SPEC:
        return f"is refused: it {_FROM_SPEC[name]}"
    if _SECRET.search(name):
        return "is refused: a secret belongs into the worker's own environment, not into a file"
    return None


def inherited(parent: Mapping[str, str]) -> dict[str, str]:
    """What a worker keeps of its parent's environment.

    Left out: whatever would change the engine behind the spec's back, and the gateway's own secrets. The GPUs
    that the parent may see are kept, with their order; the worker's own assignment replaces both.
    """
    return {
        name: value
        for name, value in parent.items()
        if name not in _DANGEROUS
        and (name not in _FROM_SPEC or name.startswith("CUDA_"))
        and not name.startswith("PAGEGATE_")
        and (name in _INHERITED or not name.startswith("VLLM_"))
    }
