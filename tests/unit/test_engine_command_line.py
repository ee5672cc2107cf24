"""`python -m engine_config`: what is printed, and the exit status that a script sees."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from engine_config import catalog
from engine_config.__main__ import app
from engine_config.render import worker_args
from tests.unit.engine_specs import document


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def unfit(tmp_path: Path) -> str:
    """A profile that is in order and does not fit."""
    path = tmp_path / "unfit.yaml"
    path.write_text(
        yaml.safe_dump(document({"model": {"source": "meta-llama/Llama-3.3-70B-Instruct", "revision": "6" * 40}}))
    )
    return str(path)


def test_a_sound_profile_is_fine_by_check() -> None:
    """Exit status 0, one line each."""
    status, said = run("check", *catalog.names())
    assert status == 0
    assert len(said.splitlines()) == len(catalog.names())


def test_check_names_every_problem_and_fails(tmp_path: Path) -> None:
    """For people and, with --json, for machines."""
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(document({"kv_cache.block_size": 48, "shutdown_grace_s": 0})))
    status, said = run("check", str(path), "no-such-profile")
    assert status == 1
    assert f"{path}: error: kv_cache.block_size: must be one of 16, 32, 64, 128 (was 48)" in said
    assert f"{path}: warning: shutdown_grace_s:" in said
    assert "no-such-profile: error: the profile: is not known" in said
    status, said = run("check", "--json", str(path))
    assert status == 1
    assert [problem["severity"] for problem in json.loads(said)[str(path)]] == ["error", "warning"]


def test_a_problem_without_a_remedy_has_one_line(tmp_path: Path) -> None:
    """There is not always something to say beyond what is wrong."""
    path = tmp_path / "list.yaml"
    path.write_text("- a")
    assert run("check", str(path)) == (1, f"{path}: error: the file: must be a mapping of settings\n")


def test_warnings_alone_do_not_fail(tmp_path: Path) -> None:
    """They are said, and the start is not stopped."""
    path = tmp_path / "unwise.yaml"
    path.write_text(yaml.safe_dump(document({"shutdown_grace_s": 0})))
    assert run("check", str(path))[0] == 0


def test_list_shows_all_profiles() -> None:
    """In a pipe one line each, separated by tabs."""
    status, said = run("list")
    assert status == 0
    assert [line.split("\t")[0] for line in said.splitlines()] == catalog.names()
    assert [row["profile"] for row in json.loads(run("list", "--json")[1])] == catalog.names()


def test_render_prints_what_a_shell_takes() -> None:
    """Read back by a shell's rules it is the same command."""
    status, said = run("render", "smollm2-135m-cpu", "--port", "9", "--model-path", "/a b", "--ipc-dir", "/run/w")
    assert status == 0
    words = shlex.split(said.replace("\\\n", ""))
    start = words.index("--model")
    assert words[start:] == worker_args(catalog.load("smollm2-135m-cpu"), "/a b", port=9, ipc_dir=Path("/run/w"))
    assert "HF_HUB_OFFLINE=1" in words[:start]


def test_render_gives_json_and_chart_values() -> None:
    """The same facts in other clothes."""
    told = json.loads(run("render", "qwen3-32b-fp8-h100x2", "--gpus", "0,1", "--json")[1])
    assert told["environment"]["CUDA_VISIBLE_DEVICES"] == "0,1"
    values = yaml.safe_load(run("render", "qwen3-32b-fp8-h100x2", "--helm")[1])
    assert values["nameOverride"] == "qwen3-32b-fp8-h100x2"
    assert json.loads(run("render", "qwen3-32b-fp8-h100x2", "--helm", "--json")[1]) == values


def test_plan_says_that_it_fits() -> None:
    """Exit status 0, and the numbers that vLLM will report."""
    status, said = run("plan", "smollm2-135m-cpu", "--host-memory-gib", "8")
    assert status == 0
    assert "fits\tyes" in said
    assert "KV tokens\t46,592" in said
    told = json.loads(run("plan", "smollm2-135m-cpu", "--json")[1])
    assert (told["fits"], told["kv_blocks"]) == (True, 1456)


def test_plan_says_what_to_change(unfit: str) -> None:
    """Exit status 1, the reason, and changes that were computed."""
    status, said = run("plan", unfit)
    assert status == 1
    assert "does not fit: " in said
    assert "parallelism.tensor: 4 (" in said


def test_plan_reads_a_folder(tmp_path: Path) -> None:
    """Its own config.json, and the size of its files."""
    model = tmp_path / "model"
    model.mkdir()
    config = catalog.model_config(catalog.load("qwen3-8b-h100"))
    (model / "config.json").write_text(json.dumps(dict(config or {})))
    (model / "model.safetensors").write_bytes(b"x" * 1000)
    path = tmp_path / "local.yaml"
    path.write_text(yaml.safe_dump(document({"model": {"source": str(model)}})))
    told = json.loads(run("plan", str(path), "--json")[1])
    assert told["memory"]["weights"] == 1000
    (model / "config.json").unlink()
    status, said = run("plan", str(path))
    assert status == 1
    assert "is not known here" in said


def test_plan_refuses_a_model_that_it_cannot_count(tmp_path: Path) -> None:
    """With the reason, not with a wrong number."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"mamba_d_state": 16}')
    path = tmp_path / "local.yaml"
    path.write_text(yaml.safe_dump(document({"model": {"source": str(model)}})))
    status, said = run("plan", str(path))
    assert status == 1
    assert "recurrent state" in said


def test_plan_names_what_it_leaves_out(tmp_path: Path) -> None:
    """Adapters are counted, encoders are not."""
    path = tmp_path / "rich.yaml"
    path.write_text(yaml.safe_dump(document({"lora": {"max_rank": 64}, "multimodal": {"images": 1}})))
    _, said = run("plan", str(path))
    assert "adapters\t" in said
    assert "note: the encoders" in said


def test_a_terminal_gets_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """FORCE_COLOR makes a terminal of a pipe."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\t" not in run("list")[1]


def test_a_command_about_a_bad_profile_fails_with_its_problems() -> None:
    """On stderr, without a traceback."""
    for command in ("plan", "render"):
        status, said = run(command, "no-such-profile")
        assert status == 1
        assert "is not known" in said


def test_checksum_prints_what_a_profile_needs(tmp_path: Path) -> None:
    """And writes the sums next to the files when asked to."""
    (tmp_path / "config.json").write_text("{}")
    status, said = run("checksum", str(tmp_path), "--write")
    assert status == 0
    assert said.splitlines()[-1].startswith("manifest: ")
    assert (tmp_path / "SHA256SUMS").read_text() == said.splitlines()[0] + "\n"
    assert run("checksum", str(tmp_path)) == (0, said)
