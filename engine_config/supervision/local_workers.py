"""The workers of this machine: from specs to the processes that a supervisor is to run.

Puts together what `placement` decides about GPUs and `ports` about ports; the command itself is `worker`'s.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine_config import bundled
from engine_config.catalog import DEFAULT_CPU, DEFAULT_GPU
from engine_config.spec import EngineSpec, Source
from engine_config.supervision.children import ChildSpec
from engine_config.supervision.placement import Gpu, assign, want
from engine_config.supervision.preflight import CPU_ENGINE

LOOPBACK = "127.0.0.1"
# Beyond the grace that calls get: vLLM takes some seconds to close its processes afterwards.
TEARDOWN_S = 20.0


@dataclass(frozen=True, slots=True)
class LocalWorker:
    """One replica: the profile it is started from (a name or a path), its port, and its GPUs by index."""

    name: str
    profile: str
    spec: EngineSpec
    port: int
    gpus: tuple[int, ...]

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def child(self, state: Path, environment: Mapping[str, str], otlp_endpoint: str | None) -> ChildSpec:
        """The process. `otlp_endpoint` is where its spans go if the profile itself does not say."""
        options = [
            "--host",
            LOOPBACK,
            "--port",
            str(self.port),
            "--state",
            str(state),
            "--parent",
            str(os.getpid()),
        ]
        if self.gpus:
            options += ["--gpus", ",".join(map(str, self.gpus))]
        if otlp_endpoint and not self.spec.tracing:
            options += ["--otlp-endpoint", otlp_endpoint]
        return ChildSpec(
            name=self.name,
            command=(sys.executable, "-m", "engine_config.worker", self.profile, *options),
            port=self.port,
            grace_s=self.spec.shutdown_grace_s + TEARDOWN_S,
            startup_timeout_s=self.spec.startup_timeout_s,
            environment=environment,
        )


def default_profile(gpus: Sequence[Gpu], engines: Collection[str]) -> str:
    """What is served when nothing is named: on the GPU where there is one and its vLLM could be installed."""
    return DEFAULT_GPU if gpus and CPU_ENGINE not in engines else DEFAULT_CPU


def local_workers(
    profiles: Sequence[tuple[str, EngineSpec]], gpus: Sequence[Gpu], free_port: Callable[[], int]
) -> list[LocalWorker]:
    """A worker for each replica of each profile, in that order. Raises NotEnoughGpus."""
    replicas = [(profile, spec) for profile, spec in profiles for _ in range(spec.replicas)]
    total, seen = Counter(spec.name for _, spec in replicas), Counter[str]()
    names = []
    for _, spec in replicas:
        names.append(f"{spec.name}-{seen[spec.name]}" if total[spec.name] > 1 else spec.name)
        seen[spec.name] += 1
    assigned = assign(gpus, [want(name, spec) for name, (_, spec) in zip(names, replicas, strict=True)])
    return [
        LocalWorker(name, profile, spec, free_port(), its_gpus)
        for name, (profile, spec), its_gpus in zip(names, replicas, assigned, strict=True)
    ]


def too_small(workers: Sequence[LocalWorker], gpus: Sequence[Gpu]) -> list[str]:
    """Warnings about workers that are on GPUs with less memory than their profile counts on."""
    memory_mib = {gpu.index: gpu.memory_mib for gpu in gpus}
    return [
        f"{worker.name} is written for {device.name}, and GPU {index} has only {memory_mib[index]} MiB"
        for worker in workers
        for device in (worker.spec.accelerator.device,)
        for index in worker.gpus
        if memory_mib[index] * 2**20 < device.memory_bytes * 0.95
    ]


def wants_bundled_model(specs: Sequence[EngineSpec]) -> bool:
    """Whether any of the workers serves the bundled model."""
    return any(spec.model.kind is Source.BUNDLED for spec in specs)


def bundled_model_is_there(models: Path) -> bool:
    """Whether its folder has been made; whether it is whole is found out by making it again."""
    return (models / bundled.FOLDER).is_dir()


def making_bundled_model(models: Path, environment: Mapping[str, str]) -> ChildSpec:
    """The process that makes or verifies the bundled model; each line that it writes is a step."""
    command = (sys.executable, "-m", "engine_config.bundled", "--cache", str(models))
    return ChildSpec("bundled-model", command, port=0, environment=environment)
