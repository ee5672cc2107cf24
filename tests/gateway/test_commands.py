"""The `pagegate` command: what it prints, and one clear message for every mistake."""

import json
import stat
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.identity.directory import Directory
from gateway.identity.principal import Principal
from gateway.settings import IdentitySettings, Settings
from tests.harness import SECRET, key

GOOD = {
    "identity": {"secret": SECRET, "keys": [key("alice")]},
    "models": [{"name": "tiny", "replicas": [{"name": "a", "url": "http://127.0.0.1:9101"}]}],
}


def run(*words: str, **environ: str) -> Result:
    return CliRunner().invoke(app, list(words), env={"PAGEGATE_CONFIG": "", **environ})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pagegate.yaml"
    path.write_text(yaml.safe_dump(GOOD))
    return path


def test_a_good_file_is_called_good(file: Path) -> None:
    """Status 0 and what is in it."""
    result = run("config", "check", str(file))
    assert (result.exit_code, result.stdout) == (0, f"{file}: good (1 models, 1 keys)\n")


def test_a_bad_file_is_refused_with_every_problem_named(file: Path) -> None:
    """Status 1, a line for each, nothing on standard output and no traceback."""
    file.write_text(yaml.safe_dump(GOOD | {"server": {"port": -1}, "admission": {"max_running": 0}, "nonsense": 1}))
    result = run("config", "check", str(file))
    assert (result.exit_code, result.stdout) == (1, "")
    for place in ("server.port", "admission.max_running", "nonsense"):
        assert f"pagegate:   {place}" in result.stderr


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    """By its name."""
    result = run("config", "check", str(tmp_path / "none.yaml"))
    assert result.exit_code == 1
    assert "none.yaml cannot be used:\npagegate:   there is no such file" in result.stderr


def test_a_secret_that_cannot_be_read_is_found_before_the_start(file: Path) -> None:
    """`check` looks where `serve` would."""
    file.write_text(yaml.safe_dump(GOOD | {"identity": {"secret_file": "gone", "keys": [key("alice")]}}))
    result = run("config", "check", str(file))
    assert result.exit_code == 1
    assert "cannot be read" in result.stderr


def test_what_is_shown_is_in_force_and_tells_no_secret(file: Path) -> None:
    """File, environment and defaults together."""
    result = run("config", "show", "--config", str(file), PAGEGATE_SERVER__PORT="9999")
    shown = yaml.safe_load(result.stdout)
    assert (shown["server"]["port"], shown["models"][0]["name"]) == (9999, "tiny")
    assert SECRET not in result.output


def test_the_schema_is_one_for_editors() -> None:
    """JSON Schema of the whole file."""
    schema = json.loads(run("config", "schema").stdout)
    assert set(schema["properties"]) == set(Settings.model_fields)


def test_a_made_key_opens_the_gateway_that_gets_its_lines(tmp_path: Path) -> None:
    """The key is shown once, apart from the lines; the secret's file is its owner's alone, and made once."""
    secret_file = tmp_path / "secret"
    made = run("keys", "stanza", "bob", "--secret-file", str(secret_file), "--models", "llama-*,tiny")
    secret = secret_file.read_bytes().strip()
    assert stat.S_IMODE(secret_file.stat().st_mode) == 0o600
    shown = made.stderr.strip().rsplit(" ", 1)[1]
    assert shown.startswith("pg-")
    assert shown not in made.stdout
    settings = IdentitySettings.model_validate({"secret": secret.decode(), "keys": yaml.safe_load(made.stdout)})
    principal = Directory(settings, (), secret, lambda: 0.0).find(shown)
    assert isinstance(principal, Principal)
    assert (principal.name, principal.models) == ("bob", ("llama-*", "tiny"))
    run("keys", "stanza", "eve", "--secret-file", str(secret_file))
    assert secret_file.read_bytes().strip() == secret


def test_a_secret_file_that_cannot_be_made_is_one_message(tmp_path: Path) -> None:
    """With the remedy."""
    result = run("keys", "stanza", "bob", "--secret-file", str(tmp_path / "no" / "secret"))
    assert result.exit_code == 1
    assert "No such file or directory" in result.stderr
    assert "folder that exists" in result.stderr


def test_a_gateway_without_models_does_not_start(file: Path) -> None:
    """It could answer nobody."""
    file.write_text(yaml.safe_dump({"identity": GOOD["identity"]}))
    result = run("serve", "--config", str(file))
    assert result.exit_code == 1
    assert "no models are configured" in result.stderr


def test_the_version_is_told() -> None:
    """For whoever reports something."""
    result = run("version")
    assert result.exit_code == 0
    assert result.stdout.startswith("pagegate ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("two words",), "name:"),
        (("bob", "--tenant", "two words"), "tenant:"),
        (("bob", "--models", "tiny,,llama"), "models.1:"),
        (("bob", "--models", "tiny, llama"), "models.1:"),
    ],
)
def test_a_key_that_the_settings_would_refuse_is_not_made(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    """What the command prints can be pasted into a settings file."""
    result = run("keys", "stanza", *arguments, "--secret-file", str(tmp_path / "secret"))
    assert result.exit_code == 1
    assert told in result.stderr
    assert not result.stdout
