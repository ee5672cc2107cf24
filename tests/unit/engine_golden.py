"""Everything that follows from a shipped profile, as one text each: `tests/unit/golden/engine_NAME.yaml`.

Written anew by `python -m tests.unit.engine_golden`; read the difference before you commit it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from engine_config import catalog
from engine_config.accelerators import GIB
from engine_config.architecture import read
from engine_config.helm import helm_values
from engine_config.plan import plan
from engine_config.render import worker_args, worker_env

FOLDER = Path(__file__).with_name("golden")


def path(name: str) -> Path:
    """Where the text of a profile is kept."""
    return FOLDER / f"engine_{name}.yaml"


def text(name: str) -> str:
    """The text as it should be now."""
    spec = catalog.load(name)
    config = catalog.model_config(spec)
    assert config is not None
    gpus = [str(index) for index in range(spec.parallelism.accelerators)] if spec.accelerator.device.is_gpu else []
    told: dict[str, Any] = {
        "arguments": worker_args(spec, "/model", port=8000, ipc_dir=Path("/run/worker")),
        "environment": worker_env(spec, gpus),
        "helm": helm_values(spec, read(config)),
        "plan": _plain(asdict(plan(spec, config, host_memory_bytes=8 * GIB))),
    }
    return yaml.safe_dump(told, sort_keys=False, width=110)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def main() -> None:
    """Write all of them, and remove those of profiles that are gone."""
    for stale in FOLDER.glob("engine_*.yaml"):
        stale.unlink()
    for name in catalog.names():
        path(name).write_text(text(name), "utf-8")


if __name__ == "__main__":
    main()
