"""Who may import whom, as pyproject.toml says it; and what a process has loaded before it does anything."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_contract_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """Stages do not know each other; gateway and engine_config meet in gateway.embedded.up alone."""
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True, no_logo=True)
    assert status == 0, capsys.readouterr().out


def test_every_folder_of_the_gateway_has_its_layer() -> None:
    """A new folder that no contract names would be free to import everything."""
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    named = {name.strip() for layer in layers for part in layer.split("|") for name in part.split(":")}
    folders = {path.parent.name for path in (ROOT / "gateway").glob("*/__init__.py")}
    assert folders <= named


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("gateway.server", {"engine_config", "torch", "transformers", "vllm"}),
        ("gateway.cli", {"engine_config", "starlette", "torch", "transformers", "vllm"}),
        ("gateway.embedded.up", {"starlette", "torch", "transformers", "vllm"}),
        ("engine_config.bundled", {"gateway", "torch", "transformers", "vllm"}),
        ("engine_config.supervision.supervisor", {"gateway", "torch", "transformers", "vllm"}),
        ("engine_config.worker", {"gateway", "torch", "transformers", "vllm"}),
        ("scripts.setting_up", {"gateway", "engine_config", "pydantic", "rich"}),
    ],
)
def test_a_process_starts_without_what_it_does_not_need(module: str, unwanted: set[str]) -> None:
    """Memory and start-up time: an engine's packages are loaded by the process that runs it only."""
    code = f"import {module}, sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not unwanted & set(done.stdout.split())
