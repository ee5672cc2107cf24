"""The state folder, the bootstrap key, the settings of a run, and what is shown and said."""

import ast
import io
import os
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.embedded.bootstrap import BadKey, administrators_key, bootstrap_key
from gateway.embedded.greeting import greeting
from gateway.embedded.one_machine import Administration, Worker, rendered
from gateway.embedded.state_folder import StateFolder, StateInUse, opened
from gateway.embedded.terminal import Lines, LiveTable, Switchable
from gateway.settings import Role, parse

DIGEST = "d" * 64
WORKERS = [
    Worker("tiny-0", ("tiny", "small"), "http://127.0.0.1:9101", 16),
    Worker("tiny-1", ("tiny",), "http://127.0.0.1:9102"),
]


def test_a_folder_is_one_ups_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path / "state"), pytest.raises(StateInUse) as caught, opened(tmp_path / "state"):
        pass
    assert caught.value.holder == str(os.getpid())
    with opened(tmp_path / "state"):
        pass


def test_a_folder_that_is_made_is_its_owners_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "state") as folder:
        folder.write(folder.settings, "a: 1\n")
        modes = {path.stat().st_mode & 0o777 for path in (folder.path, folder.logs, folder.models)}
        assert modes == {0o700}
        assert folder.settings.stat().st_mode & 0o777 == 0o600


def test_a_folder_that_was_there_keeps_its_permissions(tmp_path: Path) -> None:
    """Somebody's home folder may have been named: what lies in it is closed, it itself is theirs."""
    tmp_path.chmod(0o755)
    with opened(tmp_path):
        assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder(tmp_path)


def test_a_key_is_made_once_and_then_read(state: StateFolder) -> None:
    key = bootstrap_key(None, state)
    assert key.startswith("pg-")
    assert len(key) == 46
    assert bootstrap_key(None, state) == key


def test_a_given_key_is_used_and_not_stored(state: StateFolder) -> None:
    assert bootstrap_key(SecretStr("mine"), state) == "mine"
    assert not state.bootstrap_key.exists()


@pytest.mark.parametrize("key", ["", "two words", "tab\tbed", "schlüssel", "x" * 513])
def test_a_key_that_no_header_carries_is_refused(state: StateFolder, key: str) -> None:
    with pytest.raises(BadKey, match="PAGEGATE_BOOTSTRAP_KEY must have"):
        bootstrap_key(SecretStr(key), state)


def made(base: dict[str, Any]) -> dict[str, Any]:
    return rendered(
        base,
        port=8080,
        secret_file="/state/secret",
        key_digest=DIGEST,
        workers=WORKERS,
        administration=Administration(8081, "b" * 64, "/state/pagegate.db"),
    )


def test_the_settings_of_a_run_are_settings() -> None:
    """Without a file of the operator's: one tenant, one key, the workers as pools."""
    settings = parse(made({}), "test", Path())
    [model] = settings.models
    assert (model.name, model.aliases) == ("tiny", ("small",))
    assert [(replica.name, replica.url) for replica in model.replicas] == [
        (worker.name, worker.url) for worker in WORKERS
    ]
    assert [(key.name, key.tenant, key.models) for key in settings.identity.keys] == [("bootstrap", "default", ("*",))]


def test_a_pool_of_the_operators_gets_the_workers_in_addition() -> None:
    theirs = {"name": "tiny", "aliases": ["t"], "replicas": [{"name": "tiny-0", "url": "http://10.0.0.1:8000"}]}
    [model] = parse(made({"models": [theirs]}), "test", Path()).models
    assert model.aliases == ("t", "small")
    assert [replica.name for replica in model.replicas] == ["tiny-0", "tiny-0-2", "tiny-1"]


def test_the_bootstrap_key_joins_the_operators_tenants() -> None:
    identity = {"tenants": [{"name": "acme"}], "keys": [{"name": "bootstrap", "digest": "a" * 64, "tenant": "acme"}]}
    keys = parse(made({"identity": identity}), "test", Path()).identity.keys
    assert [(key.name, key.tenant) for key in keys] == [("bootstrap", "acme"), ("bootstrap-2", "acme")]


def test_a_key_that_the_operator_knows_may_do_what_the_operator_says() -> None:
    known = {"name": "ci", "digest": DIGEST, "models": ["tiny"]}
    keys = parse(made({"identity": {"keys": [known]}}), "test", Path()).identity.keys
    assert [(key.name, key.models) for key in keys] == [("ci", ("tiny",))]


def test_the_operators_mapping_is_left_as_it_was() -> None:
    base: dict[str, Any] = {"models": [{"name": "tiny", "replicas": []}], "identity": {"keys": []}}
    made(base)
    assert base == {"models": [{"name": "tiny", "replicas": []}], "identity": {"keys": []}}


def test_a_run_is_administered_from_this_machine() -> None:
    """On a listener of its own, with a key of its own, over a database in the state folder."""
    settings = parse(made({}), "test", Path())
    assert (settings.admin.host, settings.admin.port) == ("127.0.0.1", 8081)
    assert [(key.name, key.role) for key in settings.admin.keys] == [("bootstrap", Role.ADMIN)]
    assert settings.store.url is not None
    assert settings.store.url.get_secret_value() == "sqlite:////state/pagegate.db"


def test_the_operators_database_and_administrators_stay() -> None:
    theirs = {"name": "bootstrap", "digest": "c" * 64, "role": "viewer"}
    base = {"store": {"url": "postgresql://db/pagegate", "refresh_s": None}, "admin": {"keys": [theirs]}}
    settings = parse(made(base), "test", Path())
    assert settings.store.url is not None
    assert settings.store.url.get_secret_value() == "postgresql://db/pagegate"
    assert [(key.name, key.role) for key in settings.admin.keys] == [
        ("bootstrap", Role.VIEWER),
        ("bootstrap-2", Role.ADMIN),
    ]


def test_a_pool_is_given_what_its_workers_run_at_once() -> None:
    """Unless the operator says something else."""
    [model] = parse(made({}), "test", Path()).models
    assert model.calls_per_replica == 16
    [model] = parse(made({"models": [{"name": "tiny", "calls_per_replica": 3}]}), "test", Path()).models
    assert model.calls_per_replica == 3


def test_the_administrators_key_is_made_once(state: StateFolder) -> None:
    """For its owner alone, and never the key of callers."""
    key = administrators_key(state)
    assert key.startswith("pga-")
    assert administrators_key(state) == key
    assert state.admin_key.stat().st_mode & 0o777 == 0o600


def test_the_greeting_can_be_pasted() -> None:
    """The curl line is one line of shell words; the SDK example is four lines of Python."""
    said = greeting("http://127.0.0.1:8080/v1", "pg-it's", ["tiny"], "tiny", "/logs").splitlines()
    [curl] = [line for line in said if line.startswith("curl -N ")]
    assert "Authorization: Bearer pg-it's" in shlex.split(curl)
    start = said.index("from openai import OpenAI")
    assert len(ast.parse("\n".join(said[start : start + 4])).body) == 4


def test_without_a_chat_model_there_are_no_examples() -> None:
    said = greeting("http://127.0.0.1:8080/v1", "pg-k", ["embedder"], None, "/logs")
    assert "curl" not in said
    assert "Base URL  http://127.0.0.1:8080/v1" in said


def test_lines_are_shown_once_and_percentages_in_quarters() -> None:
    out = io.StringIO()
    lines = Lines(out, now=lambda: datetime(2026, 1, 2, 3, 4, 5))
    for percent in (0, 10, 26, 40, 100):
        lines.doing("worker", f"loading weights {percent}%")
    lines.done("worker", "ready")
    lines.done("worker", "ready")
    lines.trouble("gateway", "it was killed")
    assert out.getvalue().splitlines() == [
        "03:04:05 worker: loading weights 0%",
        "03:04:05 worker: loading weights 25%",
        "03:04:05 worker: loading weights 100%",
        "03:04:05 worker: ready",
        "03:04:05 gateway: it was killed",
    ]


def test_output_that_nobody_reads_any_more_ends_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    Lines(Gone()).doing("worker", "loading")


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_table_while_things_load_and_lines_afterwards() -> None:
    out = Tty()
    terminal = Switchable(out)
    with terminal.live():
        terminal.doing("worker", "loading weights 40%")
        terminal.done("gateway", "ready")
    terminal.trouble("worker", "it was killed")
    shown = out.getvalue()
    assert "loading weights 40%" in shown
    assert shown.splitlines()[-1].endswith("worker: it was killed")


def test_a_row_counts_the_seconds_of_its_step() -> None:
    now_s = [0.0]
    table = LiveTable(clock=lambda: now_s[0])
    table.doing("worker", "loading")
    now_s[0] = 5
    table.doing("worker", "compiling")
    now_s[0] = 7
    table.done("worker", "ready")
    now_s[0] = 99
    shown = [list(column.cells) for column in table.__rich__().columns]
    assert [str(cell) for cell in shown[3]] == ["7 s"]
