"""Where a caller is: the host that connected, or, if that is a proxy that we trust, the one that it names."""

from ipaddress import ip_address

from gateway.edge.head import Head
from gateway.settings import Network

FORWARDED_FOR = b"x-forwarded-for"


def caller_address(peer: str, head: Head, trusted: tuple[Network, ...]) -> str:
    """Of a proxy that is trusted, the address that it names; it names those before it first (RFC 7239, 5.2)."""
    if not trusted or not _is_in(peer, trusted):
        return peer
    address = peer
    for hop in map(_without_port, reversed(head.header(FORWARDED_FOR).split(","))):
        if not _is_address(hop):
            break
        address = hop
        if not _is_in(hop, trusted):
            break
    return address


def _without_port(hop: str) -> str:
    """`192.0.2.1:4711` and `[2001:db8::1]:4711` are how some proxies write an address."""
    hop = hop.strip()
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_in(address: str, networks: tuple[Network, ...]) -> bool:
    return _is_address(address) and any(ip_address(address) in network for network in networks)
