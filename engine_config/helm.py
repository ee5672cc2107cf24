"""A spec as values of the engine chart: image, resources, command, probes.

Pure. The pod starts the same worker from the same spec as a machine does, so what is checked here is what
runs there; the chart adds nothing to the engine's options.
"""

from __future__ import annotations

import math
from typing import Any

from engine_config.architecture import Architecture
from engine_config.memory import CPU_PROCESSES_BYTES, MIB, memory
from engine_config.render import KV_EVENTS_PORT, KV_REPLAY_PORT
from engine_config.spec import EngineSpec

PORT = 8000
SPEC_PATH = "/etc/pagegate/engine.yaml"
STATE_PATH = "/var/lib/pagegate"
MODELS_PATH = "/models"

_PROBE_S = 5
# Time for the last words after the grace: the worker's children end, the container is torn down.
_AFTER_GRACE_S = 15


def helm_values(spec: EngineSpec, shape: Architecture | None = None) -> dict[str, Any]:
    """Values for one release.

    Args:
        spec: What the release serves; mounted as a file, from which the worker renders its own options.
        shape: The model's architecture, for the memory of a CPU pod; without it a default is asked for.
    """
    values: dict[str, Any] = {
        "nameOverride": spec.name,
        "replicaCount": spec.replicas,
        "image": {"kind": "gpu" if spec.accelerator.device.is_gpu else "cpu"},
        "model": {
            "source": spec.model.source,
            "revision": spec.model.revision,
            "servedNames": list(spec.served_names),
            "task": spec.task,
            "contextTokens": spec.context_tokens,
        },
        "command": ["python", "-m", "engine_config.worker"],
        "args": [SPEC_PATH, "--host", "0.0.0.0", "--port", str(PORT), "--state", STATE_PATH],
        # The worker settles the rest of its environment itself, after it has fetched the model.
        "env": {"HF_HOME": MODELS_PATH},
        "engineSpec": spec.model_dump(mode="json", exclude_defaults=True),
        "ports": {"http": PORT},
        "resources": _resources(spec, shape),
        "nodeSelector": _node_selector(spec),
        "sharedMemory": {"sizeLimit": "8Gi" if spec.parallelism.accelerators > 1 else "1Gi"},
        "startupProbe": {
            **_health(),
            "periodSeconds": _PROBE_S,
            "failureThreshold": math.ceil(spec.startup_timeout_s / _PROBE_S),
        },
        "readinessProbe": {**_health(), "periodSeconds": _PROBE_S, "failureThreshold": 2},
        # A wedged engine still answers /health: that is found by the gateway. This finds a dead one.
        "livenessProbe": {**_health(), "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        "terminationGracePeriodSeconds": spec.shutdown_grace_s + _AFTER_GRACE_S,
    }
    if spec.kv_cache.events:
        values["ports"] |= {"kv-events": KV_EVENTS_PORT, "kv-replay": KV_REPLAY_PORT}
    return values


def _health() -> dict[str, Any]:
    return {"httpGet": {"path": "/health", "port": "http"}}


def _resources(spec: EngineSpec, shape: Architecture | None) -> dict[str, Any]:
    gpus = spec.parallelism.accelerators
    if spec.accelerator.device.is_gpu:
        # One core for each of: API server, engine core, tokenization, and a worker per GPU; weights pass
        # through the page cache, so memory is for processes and pinned buffers.
        wanted = {"cpu": str(3 + gpus), "memory": f"{12 + 4 * gpus}Gi"}
        return {"requests": wanted, "limits": {"nvidia.com/gpu": str(gpus), "memory": wanted["memory"]}}
    total = memory(spec, shape, None, None).total if shape else 4 * CPU_PROCESSES_BYTES
    wanted = {"cpu": "2", "memory": f"{math.ceil(1.25 * total / MIB)}Mi"}
    return {"requests": wanted, "limits": {"memory": wanted["memory"]}}


def _node_selector(spec: EngineSpec) -> dict[str, str]:
    product = spec.accelerator.device.kubernetes_product
    return {"nvidia.com/gpu.product": product} if product else {"kubernetes.io/arch": "amd64"}
