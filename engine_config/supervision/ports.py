"""Ports of this machine: kept free for the processes that we start, and whose they are when they are taken.

A port is kept by a socket that is bound but never listens. With SO_REUSEADDR on both sides Linux lets the
child bind it too and listen, while whoever asks for just any port is not given it. It matters because a
worker binds its port only once it has imported vLLM, and because a port that it has for one moment not
bound could go to a stranger whose answer to a probe would pass for the worker's.
"""

import errno
import socket
from pathlib import Path

_LISTENING = "0A"


class PortTaken(Exception):
    """Somebody listens on the port: `owner` says who, empty where that cannot be seen."""

    def __init__(self, port: int, owner: str = "") -> None:
        super().__init__(f"port {port} is taken" + (f" by {owner}" if owner else ""))
        self.port = port
        self.owner = owner


def keep(port: int = 0, host: str = "127.0.0.1") -> socket.socket:
    """Keeps a port, a free one for 0, for as long as the socket is open.

    Raises PortTaken; OSError where the host is not of this machine or the port needs privileges.
    """
    kept = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # Given both 0 and SO_REUSEADDR the kernel might choose a port that another one of us keeps.
        if port:
            kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        kept.bind((host, port))
        kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    except OSError as error:
        kept.close()
        if error.errno == errno.EADDRINUSE:
            raise PortTaken(port, owner(port)) from None
        raise
    return kept


def number(kept: socket.socket) -> int:
    """The port that the socket keeps."""
    port: int = kept.getsockname()[1]
    return port


def owner(port: int) -> str:
    """The process that listens on the port, as `name (pid 42)`; empty where it is not ours to see."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    processes = (entry for entry in Path("/proc").iterdir() if entry.name.isdigit())
    for process in processes if sockets else ():
        try:
            if any(str(link.readlink()) in sockets for link in (process / "fd").iterdir()):
                return f"{(process / 'comm').read_text(encoding='utf-8').strip()} (pid {process.name})"
        except OSError:
            continue  # gone, or somebody else's
    return ""


def _listening(port: int) -> list[str]:
    """Inodes of the sockets that listen on the port."""
    inodes = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in (line.split() for line in lines):
            if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.append(fields[9])
    return inodes
