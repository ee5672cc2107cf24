"""gateway/identity/failures.py and edge/address.py: wrong credentials by address, and whose address counts."""

from ipaddress import ip_network

import pytest

from gateway.edge.address import caller_address
from gateway.edge.head import read_head
from gateway.identity.failures import MOST_ADDRESSES, Failures
from tests.harness import Clock


def test_an_address_may_fail_so_often_a_minute() -> None:
    """Then it is told when it may again; another address is not concerned."""
    clock = Clock()
    failures = Failures(3, clock)
    assert [failures.wait_s("a") for _ in range(4)] == [0, 0, 0, pytest.approx(20)]
    assert failures.wait_s("b") == 0
    clock.advance(19)
    assert failures.wait_s("a") == pytest.approx(1)
    clock.advance(1)
    assert failures.wait_s("a") == 0


def test_going_on_makes_the_wait_no_longer() -> None:
    clock = Clock()
    failures = Failures(1, clock)
    assert failures.wait_s("a") == 0
    assert [failures.wait_s("a") for _ in range(1000)] == [pytest.approx(60)] * 1000


def test_who_has_one_address_of_ipv6_has_all_of_its_network() -> None:
    failures = Failures(1, Clock())
    assert failures.wait_s("2001:db8::1") == 0
    assert failures.wait_s("2001:db8::ffff") > 0
    assert failures.wait_s("2001:db8:0:1::1") == 0


def test_what_is_over_is_forgotten_and_the_rest_is_bounded() -> None:
    """An attacker with many addresses takes no memory."""
    clock = Clock()
    failures = Failures(10, clock)
    for number in range(MOST_ADDRESSES + 100):
        failures.wait_s(f"address {number}")
    assert repr(failures) == f"<Failures of {MOST_ADDRESSES} addresses>"
    clock.advance(61)
    failures.wait_s("a")
    assert repr(failures) == "<Failures of 1 addresses>"


TRUSTED = (ip_network("10.0.0.0/8"), ip_network("::1/128"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        pytest.param("192.0.2.1", "203.0.113.9", "192.0.2.1", id="nobody believes a stranger"),
        pytest.param("10.0.0.1", "203.0.113.9", "203.0.113.9", id="a proxy is believed"),
        pytest.param("10.0.0.1", "1.1.1.1, 203.0.113.9, 10.9.9.9", "203.0.113.9", id="the last that is no proxy"),
        pytest.param("10.0.0.1", "10.0.0.7", "10.0.0.7", id="proxies all the way"),
        pytest.param("10.0.0.1", "", "10.0.0.1", id="it says nothing"),
        pytest.param("10.0.0.1", "unknown", "10.0.0.1", id="it says nothing that is an address"),
        pytest.param("10.0.0.1", "203.0.113.9, nonsense, 10.0.0.3", "10.0.0.3", id="no further than can be read"),
        pytest.param("::1", "2001:db8::5", "2001:db8::5", id="IPv6"),
        pytest.param("10.0.0.1", "203.0.113.9:4711", "203.0.113.9", id="with a port"),
        pytest.param("10.0.0.1", "[2001:db8::5]:4711", "2001:db8::5", id="IPv6 with a port"),
        pytest.param("", "203.0.113.9", "", id="a local socket"),
    ],
)
def test_whose_address_counts(peer: str, forwarded: str, address: str) -> None:
    """Only what a proxy of ours says is believed, and of that the last word that is not its own kind."""
    pairs = [(b"host", b"a"), (b"x-forwarded-for", forwarded.encode())]
    head = read_head(b"POST", b"/", pairs, "1.1", keep_alive=True)
    assert caller_address(peer, head, TRUSTED) == address
    assert caller_address(peer, head, ()) == peer
