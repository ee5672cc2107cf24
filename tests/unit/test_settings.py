"""gateway/settings.py and problems.py: one file, every problem named by its path, no secret shown."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gateway.settings import (
    Embedded,
    IdentitySettings,
    Settings,
    SettingsError,
    embedded,
    environment,
    load,
    overlay,
    parse,
    secret_of,
)
from tests.unit.splitting import thorough

CANARY = "canary-secret-0123456789"
DIGEST = "0" * 64
URL = "http://127.0.0.1:9101"


def problems(raw: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        parse(raw, "gateway.yaml", Path())
    assert caught.value.source == "gateway.yaml"
    assert str(caught.value) == "gateway.yaml: " + "; ".join(caught.value.problems)
    return caught.value.problems


def identity(**fields: Any) -> dict[str, Any]:
    return {"identity": {"secret": CANARY, **fields}}


def key(name: str = "mine", digest: str = DIGEST, **fields: Any) -> dict[str, Any]:
    return {"name": name, "digest": digest, **fields}


def model(name: str = "tiny", *replicas: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "replicas": [{"name": name, "url": URL} for name in replicas], **fields}


def test_no_settings_at_all_are_the_defaults() -> None:
    """Nothing has to be said for a start."""
    assert parse({}, "x", Path()) == Settings() == load(None, {})
    assert Settings().server.host == "127.0.0.1"


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_a_section_without_content_is_its_defaults(name: str) -> None:
    """`server:` and nothing below it is a file under construction, not a mistake."""
    assert parse({name: None}, "x", Path()) == Settings()


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        pytest.param({"sever": {}}, "sever: is not a setting", id="an unknown section"),
        pytest.param({"server": {"prot": 1}}, "server.prot: is not a setting", id="an unknown setting"),
        pytest.param(
            identity(keys=[key(limits={"rpm": 1})]), "identity.keys.0.limits.rpm: is not a setting", id="deep"
        ),
        pytest.param(
            {"admission": {"max_running": 0}}, "admission.max_running: must be at least 1 (was 0)", id="too small"
        ),
        pytest.param({"server": {"port": 70000}}, "server.port: must be at most 65535 (was 70000)", id="too large"),
        pytest.param(
            {"fleet": {"probe_interval_s": 0}}, "fleet.probe_interval_s: must be more than 0 (was 0)", id="zero seconds"
        ),
        pytest.param(
            {"server": {"port": "http"}},
            "server.port: input should be a valid integer, unable to parse string as an integer (was 'http')",
            id="text for a number",
        ),
        pytest.param(
            {"fleet": {"probe_interval_s": float("nan")}},
            "fleet.probe_interval_s: input should be a finite number (was nan)",
            id="no number",
        ),
        pytest.param(
            {"server": []},
            "server: input should be a valid dictionary or instance of ServerSettings",
            id="a list for a section",
        ),
        pytest.param(
            {"server": 5},
            "server: input should be a valid dictionary or instance of ServerSettings (was 5)",
            id="a number for a section",
        ),
        pytest.param({"models": {}}, "models: input should be a valid tuple", id="a mapping for a list"),
        pytest.param({"models": [model()] * 1 + [{}]}, "models.1.name: is missing", id="something missing"),
        pytest.param(
            {"telemetry": {"log_level": "loud"}},
            "telemetry.log_level: input should be 'debug', 'info', 'warning' or 'error' (was 'loud')",
            id="one of a few",
        ),
        pytest.param(
            {"telemetry": {"otlp_endpoint": "collector:4318"}},
            "telemetry.otlp_endpoint: must begin with http://host:port or https://host:port (was 'collector:4318')",
            id="a URL without a scheme",
        ),
        pytest.param(
            identity(keys=[key(limits={"tokens_per_minute": 0})]),
            "identity.keys.0.limits.tokens_per_minute: must be at least 1 (was 0)",
            id="a number beside secrets is shown",
        ),
        # What values say of each other.
        pytest.param({"models": [model(), model()]}, "models: `tiny` is given more than once", id="a model twice"),
        pytest.param(
            {"models": [model("a", aliases=["b"]), model("b")]}, "models: `b` is given more than once", id="as an alias"
        ),
        pytest.param(
            {"models": [model("a", aliases=["a"])]}, "models: `a` is given more than once", id="as its own alias"
        ),
        pytest.param(
            {"models": [model(), model("b", "r", "r")]},
            "models.1.replicas: `r` is given more than once",
            id="a replica twice",
        ),
        pytest.param(
            identity(keys=[key(tenant="nobody")]),
            "identity.keys.0.tenant: `nobody` is not one of the tenants (default)",
            id="a tenant that is none",
        ),
        pytest.param(
            identity(tenants=[{"name": "b"}, {"name": "a"}], keys=[key()]),
            "identity.keys.0.tenant: `default` is not one of the tenants (a, b)",
            id="the usual tenant, which is not there",
        ),
        pytest.param(
            identity(tenants=[{"name": "a"}, {"name": "a"}]),
            "identity.tenants: `a` is given more than once",
            id="a tenant twice",
        ),
        pytest.param(
            identity(keys=[key("a"), key("a", "1" * 64)]),
            "identity.keys: `a` is given more than once",
            id="a key twice",
        ),
        pytest.param(
            identity(keys=[key("a"), key("b")]),
            f"identity.keys: `{DIGEST}` is given more than once",
            id="a digest twice",
        ),
        pytest.param(
            {"identity": {"keys": [key()]}},
            "identity.secret_file: is needed to check the keys' digests",
            id="keys without a secret",
        ),
        pytest.param(
            {"identity": {"secret": "short"}}, "identity.secret: must have at least 16 characters", id="a short secret"
        ),
    ],
)
def test_a_problem_is_named_by_its_path(raw: dict[str, Any], problem: str) -> None:
    """What is wrong where, and what it was."""
    assert problems(raw) == (problem,)


@pytest.mark.parametrize(
    ("url", "good"),
    [
        ("http://127.0.0.1:9101", "http://127.0.0.1:9101"),
        ("http://127.0.0.1:9101/", "http://127.0.0.1:9101"),
        ("https://engine-0.pool.svc.cluster.local", "https://engine-0.pool.svc.cluster.local"),
        ("http://[::1]:9101", "http://[::1]:9101"),
        ("HTTP://host:1", "http://host:1"),
        ("127.0.0.1:9101", None),
        ("http://", None),
        ("http:///x", None),
        ("ftp://host", None),
        ("unix:///tmp/engine", None),
        ("http://host:9101/v1", None),
        ("http://host:9101?x=1", None),
        ("http://host:9101#x", None),
        ("http://user:canary-password@host", None),
        ("http://:canary-password@host", None),
        ("http://@host", None),
        ("http://host:0", None),
        ("http://host:70000", None),
        ("http://host:port", None),
        ("http://ho st", None),
        ("http://host\r\nx: y", None),
        ("http://[::1", None),
        ("", None),
    ],
)
def test_where_an_engine_listens(url: str, good: str | None) -> None:
    """A scheme, a host and a port, and nothing that a call's head or a log could trip over."""
    raw = {"models": [{"name": "tiny", "replicas": [{"name": "a", "url": url}]}]}
    if good is not None:
        assert parse(raw, "x", Path()).models[0].replicas[0].url == good
    else:
        (problem,) = problems(raw)
        assert problem.startswith("models.0.replicas.0.url: ")
        assert "canary" not in problem


@pytest.mark.parametrize(
    ("endpoint", "good"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318"),
        ("https://collector/base/", "https://collector/base"),
        ("", None),
        (None, None),
    ],
)
def test_where_spans_go(endpoint: str | None, good: str | None) -> None:
    """With or without a path; empty means nowhere."""
    assert parse({"telemetry": {"otlp_endpoint": endpoint}}, "x", Path()).telemetry.otlp_endpoint == good


@pytest.mark.parametrize("name", ["", " ", "a b", "a\n", "-a", "x" * 129, "naïve", "a\x00", "*", "{x}", "a,b"])
def test_names_are_safe_in_headers_metrics_and_logs(name: str) -> None:
    """Of models, replicas, tenants and keys alike."""
    for raw in (
        {"models": [{"name": name}]},
        {"models": [model("a", aliases=[name])]},
        {"models": [{"name": "a", "replicas": [{"name": name, "url": URL}]}]},
        identity(tenants=[{"name": "default"}, {"name": name}]),
        identity(keys=[key(name)]),
    ):
        assert problems(raw)


def test_all_problems_are_told_at_once() -> None:
    """Wrong values, unknown ones, missing ones, and what does not agree: nobody starts twice to hear of the second."""
    raw = {
        "server": {"port": -1, "prot": 8080},
        "identity": {
            "keys": [key("a", "xyz", tenant="nobody"), key("a"), {"digest": DIGEST}, "nonsense"],
            "tenants": [{"name": "default", "limits": {"requests_per_minute": "many"}}, {"name": "default"}],
        },
        "models": [model("m", "r", "r", colour="blue"), model("n", aliases=["m", 7]), 5],
        "admission": {"max_choices": 0},
    }
    assert sorted(line.partition(": ")[0] for line in problems(raw)) == sorted(
        [
            "server.port",
            "server.prot",
            "identity.keys.0.digest",
            "identity.keys.0.tenant",
            "identity.keys.2.name",
            "identity.keys.3",
            "identity.keys",
            "identity.keys",
            "identity.secret_file",
            "identity.tenants.0.limits.requests_per_minute",
            "identity.tenants",
            "models.0.colour",
            "models.0.replicas",
            "models.1.aliases.1",
            "models.2",
            "models",
            "admission.max_choices",
        ]
    )


def test_what_does_not_agree_is_told_once() -> None:
    """By whichever look finds it."""
    raw = {"models": [model("a", "r", "r"), model("a")], "server": {"port": -1}}
    assert len(problems(raw)) == 3


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param({"identity": {"secret": ["x", CANARY]}}, id="of the wrong type"),
        pytest.param({"identity": {"secret": {"value": CANARY}}}, id="in a mapping"),
        pytest.param({"identity": {"secret": 1234567890123456}}, id="a number"),
        pytest.param({"identity": CANARY}, id="in the section's place"),
        pytest.param({"identity": {"keys": CANARY}}, id="in the keys' place"),
        pytest.param({"identity": {"keys": [CANARY]}}, id="in a key's place"),
        pytest.param(identity(keys=[key(digest=CANARY)]), id="for a digest"),
        pytest.param(identity(keys=[key(digest=CANARY + "@")]), id="for a digest, with an @"),
        pytest.param(identity(keys=[key(name=CANARY + " ")]), id="for a key's name"),
        pytest.param(identity(keys=[key(models=CANARY)]), id="for a key's models"),
        pytest.param(
            {"models": [{"name": "a", "replicas": [{"name": "a", "url": URL, "api_key": [CANARY]}]}]}, id="an engine's"
        ),
        pytest.param(
            {"models": [{"name": "a", "replicas": [{"name": "a", "url": f"http://x:{CANARY}@host/"}]}]}, id="in a URL"
        ),
        pytest.param({"telemetry": {"otlp_endpoint": f"http://x:{CANARY}@host"}}, id="in the collector's URL"),
    ],
)
def test_a_problem_never_shows_a_secret(raw: dict[str, Any]) -> None:
    """Also not one that was put in the wrong place."""
    assert CANARY not in "".join(problems(raw))
    assert "1234567890123456" not in "".join(problems(raw))


def test_settings_never_show_a_secret() -> None:
    """Neither printed nor dumped, as `pagegate config show` does it."""
    settings = parse(
        {
            **identity(keys=[key()]),
            "models": [{"name": "a", "replicas": [{"name": "r", "url": URL, "api_key": CANARY}]}],
        },
        "x",
        Path(),
    )
    assert CANARY not in f"{settings!r} {settings} {settings.model_dump_json()} {settings.model_dump(mode='json')}"
    assert secret_of(settings.identity) == CANARY.encode()


def test_settings_do_not_change() -> None:
    """Each part holds its own section for as long as it lives."""
    with pytest.raises(ValidationError):
        Settings().server.port = 1  # type: ignore[misc]  # That it cannot be done is the rule.


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        pytest.param({"PAGEGATE_SERVER__PORT": "9000"}, {"server": {"port": "9000"}}, id="a number, as text"),
        pytest.param({"PAGEGATE_PORT": "9000"}, {"server": {"port": "9000"}}, id="the short name"),
        pytest.param(
            {"PAGEGATE_PORT": "1", "PAGEGATE_SERVER__PORT": "2"}, {"server": {"port": "2"}}, id="the long name wins"
        ),
        pytest.param(
            {"PAGEGATE_IDENTITY__SECRET": "1234567890123456"},
            {"identity": {"secret": "1234567890123456"}},
            id="digits stay text",
        ),
        pytest.param(
            {"PAGEGATE_ROUTING__IDLENESS": "2020-01-01"}, {"routing": {"idleness": "2020-01-01"}}, id="a date"
        ),
        pytest.param(
            {"PAGEGATE_TELEMETRY__LOG_CALLS": "no"}, {"telemetry": {"log_calls": "no"}}, id="a word for a truth value"
        ),
        pytest.param({"PAGEGATE_SERVER__METRICS_PORT": ""}, {"server": {"metrics_port": None}}, id="nothing is null"),
        pytest.param({"PAGEGATE_SERVER__METRICS_PORT": "null"}, {"server": {"metrics_port": None}}, id="null"),
        pytest.param(
            {"PAGEGATE_ADMISSION__ALLOWED_FIELDS": "[ignore_eos, min_tokens]"},
            {"admission": {"allowed_fields": ["ignore_eos", "min_tokens"]}},
            id="a list",
        ),
        pytest.param({"PAGEGATE_SERVER": "{port: 9}"}, {"server": {"port": 9}}, id="a whole section"),
        pytest.param({"PAGEGATE_SERVER__HOST": "a: [b"}, {"server": {"host": "a: [b"}}, id="no YAML is text"),
        pytest.param({"PAGEGATE_SERVER__HOST": '"0.0.0.0"'}, {"server": {"host": "0.0.0.0"}}, id="in quotes"),
        pytest.param({"PAGEGATE_STATE": "x", "PAGEGATE_BOOTSTRAP_KEY": "y", "PAGEGATE_CONFIG": "z"}, {}, id="not ours"),
        pytest.param({"HOME": "/", "pagegate_server__port": "1", "XPAGEGATE_PORT": "1"}, {}, id="others'"),
        pytest.param({"PAGEGATE_COLOUR": "blue"}, {"colour": "blue"}, id="an unknown one, for parse to refuse"),
    ],
)
def test_the_environment_overlays(environ: dict[str, str], expected: dict[str, Any]) -> None:
    """`PAGEGATE_SECTION__FIELD`, over whatever the file says."""
    assert overlay({}, environ) == expected


def test_the_environment_goes_over_the_file_and_leaves_it_as_it_was() -> None:
    """Only the named fields change, in a copy."""
    raw: dict[str, Any] = {"server": {"port": 1, "host": "h"}, "models": []}
    assert overlay(raw, {"PAGEGATE_SERVER__PORT": "2"}) == {"server": {"port": "2", "host": "h"}, "models": []}
    assert raw == {"server": {"port": 1, "host": "h"}, "models": []}


def test_a_variable_below_something_that_is_no_section_is_a_problem() -> None:
    """And not silently something else."""
    for environ in ({"PAGEGATE_SERVER__PORT__X": "1"}, {"PAGEGATE_MODELS__0__NAME": "x"}, {"PAGEGATE___X": "1"}):
        with pytest.raises(SettingsError):
            parse(overlay({"models": [model()]}, environ), "x", Path())


def test_a_file_is_loaded(tmp_path: Path) -> None:
    """With the environment over it, and its relative paths relative to itself."""
    path = tmp_path / "gateway.yaml"
    path.write_text("server: {port: 9000}\nidentity: {secret_file: secret}\n", encoding="utf-8")
    (tmp_path / "secret").write_text(CANARY + "\n", encoding="utf-8")
    settings = load(path, {"PAGEGATE_SERVER__HOST": "0.0.0.0"})
    assert (settings.server.port, settings.server.host) == (9000, "0.0.0.0")
    assert settings.identity.secret_file == tmp_path / "secret"
    assert secret_of(settings.identity) == CANARY.encode()


def test_an_absolute_path_stays_as_it_is(tmp_path: Path) -> None:
    """Wherever the file lies."""
    settings = parse({"identity": {"secret_file": str(tmp_path / "s")}}, "x", Path("/elsewhere"))
    assert settings.identity.secret_file == tmp_path / "s"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(b"server: [", "is not YAML", id="no YAML"),
        pytest.param(b"a: b: c", "is not YAML", id="no YAML either"),
        pytest.param(b"server: \xff", "cannot be read", id="no UTF-8"),
        pytest.param(b"- a\n- b\n", "must be a mapping of sections (was a list)", id="a list"),
        pytest.param(b"just words", "must be a mapping of sections (was a str)", id="a text"),
        pytest.param(b"7: x", "keys should be strings", id="a number for a name"),
        pytest.param(b"a: !!python/object:os.system {}", "is not YAML", id="an object"),
    ],
)
def test_a_file_that_is_no_settings_file(tmp_path: Path, content: bytes, problem: str) -> None:
    """One line that says so, and the file's name."""
    path = tmp_path / "gateway.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load(path, {})
    assert problem in caught.value.problems[0]
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    """And one that cannot be read, to be unreadable."""
    with pytest.raises(SettingsError, match="there is no such file"):
        load(tmp_path / "absent.yaml", {})
    with pytest.raises(SettingsError, match="cannot be read"):
        load(tmp_path, {})


@pytest.mark.parametrize("content", [b"", b"\n# only a comment\n", b"---\n"])
def test_an_empty_file_is_the_defaults(tmp_path: Path, content: bytes) -> None:
    """As no file."""
    path = tmp_path / "gateway.yaml"
    path.write_bytes(content)
    assert load(path, {}) == Settings()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(None, "cannot be read: No such file or directory", id="missing"),
        pytest.param(b"", "must hold at least 16 bytes (holds 0)", id="empty"),
        pytest.param(b"  fifteen bytes..\n", "must hold at least 16 bytes (holds 15)", id="short"),
    ],
)
def test_a_secret_file_without_a_secret(tmp_path: Path, content: bytes | None, problem: str) -> None:
    """Is a problem of the setting that names it."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        secret_of(IdentitySettings(secret_file=path))
    assert caught.value.source == "identity.secret_file"
    assert caught.value.problems[0].startswith(problem)


def test_without_keys_no_secret_is_needed() -> None:
    """A gateway that nobody may call yet."""
    assert secret_of(IdentitySettings()) == b""


def test_what_up_reads_of_the_environment() -> None:
    """Its own few variables; an empty one is none."""
    assert embedded({}) == Embedded()
    assert embedded({"PAGEGATE_PORT": "", "HOME": "/"}) == Embedded()
    found = embedded({"PAGEGATE_PORT": "9000", "PAGEGATE_BOOTSTRAP_KEY": CANARY, "PAGEGATE_STATE": "s"})
    assert (found.port, found.state) == (9000, Path("s"))
    assert found.bootstrap_key is not None
    assert found.bootstrap_key.get_secret_value() == CANARY
    assert CANARY not in repr(found)


def test_the_environment_can_be_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is now, to whoever starts other processes; changing what was handed on changes nothing here."""
    monkeypatch.setenv("PAGEGATE_TESTED", "yes")
    handed_on = environment()
    assert handed_on["PAGEGATE_TESTED"] == "yes"
    handed_on.clear()
    assert environment()["PAGEGATE_TESTED"] == "yes"


@pytest.mark.parametrize("port", ["http", "-1", "70000", "8080.5", f"{CANARY}"])
def test_a_wrong_variable_is_named_as_it_is_written(port: str) -> None:
    """Whoever set it looks for that name."""
    with pytest.raises(SettingsError) as caught:
        embedded({"PAGEGATE_PORT": port, "PAGEGATE_BOOTSTRAP_KEY": CANARY})
    (problem,) = caught.value.problems
    assert problem.startswith("PAGEGATE_PORT: ")


def test_every_setting_is_described() -> None:
    """The reference and the editors' schema are made of these words."""
    schema = Settings.model_json_schema()
    for name, section in schema["$defs"].items():
        assert section.get("description"), name
        for field, described in section.get("properties", {}).items():
            assert described.get("description"), f"{name}.{field}"
    json.dumps(schema)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70_000) | st.floats() | st.text(max_size=6) | st.just(URL),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "url", "keys", "tenants", "limits", "digest", "aliases", "replicas", "port", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@thorough
@given(st.dictionaries(st.sampled_from([*Settings.model_fields, "x"]), values, max_size=4))
def test_whatever_is_in_a_file_is_settings_or_problems(raw: dict[str, Any]) -> None:
    """Each on one line that begins with a path; and what was accepted reads back the same."""
    try:
        settings = parse(raw, "x", Path())
    except SettingsError as error:
        assert error.problems
        assert all(": " in problem and "\n" not in problem for problem in error.problems)
    else:
        assert parse(yaml.safe_load(yaml.safe_dump(settings.model_dump(mode="json"))), "x", Path()) == settings
