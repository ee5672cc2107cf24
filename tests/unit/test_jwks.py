"""gateway/identity/jwk.py and jwks.py: which keys verify what, and when an issuer is asked for them."""

import asyncio
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.identity.jwk import MOST_KEYS, KeySet, NoKeys, PublicKey, key_set
from gateway.identity.jwks import (
    ABSENT_S,
    COOLDOWN_S,
    FIRST_RETRY_S,
    MOST_ABSENT,
    PATIENCE_S,
    RETRY_S,
    IssuerKeys,
    NotFetched,
)
from gateway.identity.jws import LONGEST_KEY_ID
from gateway.settings import IssuerSettings
from tests.identity_provider import Signer, key_document, signer
from tests.unit.by_hand import HandLoop
from tests.unit.splitting import thorough

ISSUER = "https://id.example"
KEYS_URL = "https://keys.example/set"
ALL = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"})
RSA, EC, EC_384, EC_521 = signer("RS256", "rsa"), signer("ES256", "ec"), signer("ES384", "ec3"), signer("ES512", "ec5")
ED, ED_448 = signer("EdDSA", "ed"), signer("EdDSA", "ed-448", 448)
OTHER = signer("ES256", "other")
RSA_ALL = {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}


def able(entry: dict[str, Any], accepted: frozenset[str] = ALL) -> set[str]:
    """What the one key of a set may verify; empty where it is not used."""
    try:
        (key,) = key_set(key_document(entry), accepted).keys
    except NoKeys as none:
        assert str(none) == "the key set has no key that can be used"
        return set()
    return set(key.algorithms)


# What a key may verify.


@pytest.mark.parametrize(
    ("made", "accepted", "algorithms"),
    [
        pytest.param(RSA, ALL, {"RS256"}, id="RSA for RS256"),
        pytest.param(EC, ALL, {"ES256"}, id="P-256"),
        pytest.param(EC_384, ALL, {"ES384"}, id="P-384"),
        pytest.param(EC_521, ALL, {"ES512"}, id="P-521"),
        pytest.param(ED, ALL, {"EdDSA"}, id="Ed25519"),
        pytest.param(ED_448, ALL, {"EdDSA"}, id="Ed448"),
        pytest.param(RSA, frozenset({"ES256"}), set(), id="none that is accepted"),
    ],
)
def test_a_key_verifies_what_it_says(made: Signer, accepted: frozenset[str], algorithms: set[str]) -> None:
    """And what the settings accept."""
    assert able(made.jwk(), accepted) == algorithms


JWKS: dict[str, tuple[Signer, dict[str, Any], set[str]]] = {
    "RSA for anything": (RSA, {"alg": None}, RSA_ALL),
    "RSA for PS512": (RSA, {"alg": "PS512"}, {"PS512"}),
    "RSA for a curve's algorithm": (RSA, {"alg": "ES256"}, set()),
    "RSA for a secret's algorithm": (RSA, {"alg": "HS256"}, set()),
    "RSA for none": (RSA, {"alg": "none"}, set()),
    "RSA for encryption": (RSA, {"alg": "RSA-OAEP", "use": "enc"}, set()),
    "RSA for a list": (RSA, {"alg": ["RS256"]}, set()),
    "P-256 for anything": (EC, {"alg": None}, {"ES256"}),
    "P-256 for ES384": (EC, {"alg": "ES384"}, set()),
    "P-256 for ES256K": (EC, {"alg": "ES256K"}, set()),
    "P-256 for key agreement": (EC, {"alg": "ECDH-ES"}, set()),
    "P-256 said to be P-384": (EC, {"crv": "P-384", "alg": None}, set()),
    "P-256 said to be secp256k1": (EC, {"crv": "secp256k1", "alg": None}, set()),
    "P-256 said to be Ed25519": (EC, {"crv": "Ed25519", "alg": None}, set()),
    "a curve without a name": (EC, {"crv": None, "alg": None}, set()),
    "a curve that is a list": (EC, {"crv": ["P-256"], "alg": None}, set()),
    "a point that is not on the curve": (EC, {"x": "A" * 43}, set()),
    "a point that is too short": (EC, {"x": "AAAA"}, set()),
    "a point of a number": (EC, {"x": 1}, set()),
    "Ed25519 for anything": (ED, {"alg": None}, {"EdDSA"}),
    "Ed25519 for key agreement": (ED, {"crv": "X25519"}, set()),
    "Ed25519 that is cut": (ED, {"x": "AAAA"}, set()),
    "use missing": (RSA, {"use": None}, {"RS256"}),
    "use enc": (RSA, {"use": "enc"}, set()),
    "use a list": (RSA, {"use": ["sig"]}, set()),
    "key_ops verify": (RSA, {"key_ops": ["verify"]}, {"RS256"}),
    "key_ops verify and more": (RSA, {"key_ops": ["encrypt", "verify"]}, {"RS256"}),
    "key_ops sign": (RSA, {"key_ops": ["sign"]}, set()),
    "key_ops nothing": (RSA, {"key_ops": []}, set()),
    "key_ops a text": (RSA, {"key_ops": "verify"}, set()),
    "kty missing": (RSA, {"kty": None}, set()),
    "kty of another kind": (RSA, {"kty": "EC"}, set()),
    "kty a secret": (RSA, {"kty": "oct"}, set()),
    "kty in small letters": (RSA, {"kty": "rsa"}, set()),
    "kty a list": (RSA, {"kty": ["RSA"]}, set()),
    "kty a list, with a curve": (EC, {"kty": ["EC"]}, set()),
    "without modulus": (RSA, {"n": None}, set()),
    "a modulus that is a number": (RSA, {"n": 17}, set()),
    "a modulus of nothing": (RSA, {"n": ""}, set()),
    "an exponent of one": (RSA, {"e": "AQ"}, set()),
    "an even exponent": (RSA, {"e": "BA"}, set()),
    "an exponent of zero": (RSA, {"e": "AA"}, set()),
    "kid missing": (RSA, {"kid": None}, {"RS256"}),
    "kid a number": (RSA, {"kid": 1}, set()),
    "kid long": (RSA, {"kid": "k" * LONGEST_KEY_ID}, {"RS256"}),
    "kid too long": (RSA, {"kid": "k" * (LONGEST_KEY_ID + 1)}, set()),
    "with a certificate": (RSA, {"x5c": ["AAAA"], "x5u": "https://evil.example"}, {"RS256"}),
    "with its private half": (RSA, {"d": "AQAB"}, set()),
    "with a prime": (RSA, {"p": "AQAB"}, set()),
    "with a secret": (EC, {"k": "AQAB"}, set()),
}


@pytest.mark.parametrize(("made", "changes", "algorithms"), JWKS.values(), ids=JWKS)
def test_what_a_published_key_is_good_for(made: Signer, changes: dict[str, Any], algorithms: set[str]) -> None:
    """Its type, its curve, `alg`, `use` and `key_ops` must all allow it; a key that nobody can be sure of is none."""
    assert able(made.jwk(**changes)) == algorithms


@pytest.mark.parametrize(("bits", "good"), [(1024, False), (2040, False), (2048, True), (3072, True)])
def test_short_keys_are_no_keys(bits: int, good: bool) -> None:
    """RSA below 2048 bits is refused, whoever publishes it."""
    assert able(signer("RS256", f"rsa-{bits}", bits).jwk()) == ({"RS256"} if good else set())


def test_endless_keys_are_no_keys() -> None:
    """A modulus of a megabit would cost every token seconds."""
    assert able(RSA.jwk(n="-" + "A" * 170_000 + "B")) == set()
    assert able(RSA.jwk(n="-" + "A" * 1400 + "B")) == set()


def test_shared_secrets_are_no_keys() -> None:
    """Who publishes one has none."""
    for algorithm in ("HS256", "RS256", None):
        assert able({"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "oct", "alg": algorithm}) == set()


@pytest.mark.parametrize("made", [RSA, EC, EC_384, EC_521, ED, ED_448], ids=lambda made: made.key)
def test_a_key_verifies_its_own_signatures_by_its_own_algorithm_alone(made: Signer) -> None:
    """Not another algorithm's, not over another message, not a part of one."""
    (key,) = key_set(key_document(made), ALL).keys
    signature = made.signature(b"message")
    assert key.verifies(made.algorithm, b"message", signature)
    assert not key.verifies(made.algorithm, b"messages", signature)
    assert not key.verifies(made.algorithm, b"message", signature[:-1])
    assert not key.verifies(made.algorithm, b"message", b"")
    for algorithm in (ALL | {"HS256", "none", ""}) - {made.algorithm}:
        assert not key.verifies(algorithm, b"message", signature)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"", "is not JSON"),
        (b"<html>Sign in</html>", "is not JSON"),
        (b"[]", "is not JSON"),
        (b"null", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"keys":[],"keys":[]}', "is not JSON"),
        (b"{}", "has no list of keys"),
        (b'{"keys":null}', "has no list of keys"),
        (b'{"keys":{"a":{}}}', "has no list of keys"),
        (b'{"keys":"none"}', "has no list of keys"),
        (b'{"keys":[]}', "has no key that can be used"),
        (b'{"keys":[null,1,"key",[],{}]}', "has no key that can be used"),
        (b'{"keys":[' + b"{}," * MOST_KEYS + b"{}]}", "has more than 64 keys"),
    ],
)
def test_what_is_no_key_set(document: bytes, why: str) -> None:
    """An empty one is none: no issuer has no keys, but many a broken one says so."""
    with pytest.raises(NoKeys, match=why):
        key_set(document, ALL)


def test_a_set_may_be_full() -> None:
    """As many keys as there may be are good."""
    document = key_document(*(EC.jwk(kid=str(number)) for number in range(MOST_KEYS)))
    assert len(key_set(document, ALL).keys) == MOST_KEYS


def test_one_bad_key_spoils_no_other() -> None:
    """Issuers publish keys for other purposes beside those for signatures."""
    document = key_document({"kty": "oct", "k": "AAAA"}, RSA, RSA.jwk(use="enc", kid="enc"), {"kty": "PQ"}, EC)
    assert [key.key_id for key in key_set(document, ALL).keys] == ["rsa", "ec"]


@pytest.mark.parametrize(
    ("published", "algorithm", "key_id", "found"),
    [
        pytest.param([RSA, EC], "RS256", "rsa", True, id="by its id"),
        pytest.param([RSA, EC], "RS256", "ec", False, id="another kind"),
        pytest.param([RSA, EC], "RS256", "RSA", False, id="in capitals"),
        pytest.param([RSA, EC], "RS256", None, True, id="the only one"),
        pytest.param([EC, OTHER], "ES256", None, False, id="one of two"),
        pytest.param([EC, OTHER], "ES256", "other", True, id="one of two, by its id"),
        pytest.param([EC, OTHER.named("ec")], "ES256", "ec", False, id="two of that id"),
        pytest.param([EC, EC_384.named("ec")], "ES256", "ec", True, id="two of that id, of other kinds"),
        pytest.param([EC, EC], "ES256", "ec", True, id="the same one twice"),
        pytest.param([EC.named(None)], "ES256", "ec", False, id="a name for a key without"),
        pytest.param([EC.named(None)], "ES256", None, True, id="neither has a name"),
        pytest.param([EC.named("")], "ES256", "", True, id="an empty name"),
    ],
)
def test_which_key_a_token_means(published: list[Signer], algorithm: str, key_id: str | None, found: bool) -> None:
    """The one of that id and for that algorithm; where there is a choice there is none."""
    keys = key_set(key_document(*published), ALL)
    assert (keys.find(algorithm, key_id) is not None) is found


def test_keys_are_the_same_when_what_they_are_is() -> None:
    """Whatever else is said of them, and in whatever order: that is what tells a withdrawn key from one that stays."""
    (key,) = key_set(key_document(EC), ALL).keys
    again, other = (
        key_set(key_document(entry), ALL).keys[0]
        for entry in (dict(reversed(EC.jwk(x5t="abc", use=None).items())), OTHER.jwk(kid="ec"))
    )
    assert (key == again, hash(key) == hash(again), key == other) == (True, True, False)
    assert KeySet().find("ES256", None) is None
    assert repr(key) == "PublicKey(key_id='ec', algorithms=frozenset({'ES256'}))"


LETTERS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=10)


@thorough
@given(
    st.dictionaries(
        st.sampled_from(["kty", "crv", "alg", "use", "kid", "n", "e", "x", "y", "key_ops", "d"]),
        st.sampled_from(["RSA", "EC", "OKP", "P-256", "Ed25519", "sig", "AQAB", "", "A" * 43, "A" * 342])
        | st.none()
        | st.integers(-(2**63), 2**63)
        | LETTERS
        | st.lists(LETTERS, max_size=2),
    )
)
def test_whatever_a_key_is_it_is_used_or_left_out(entry: dict[str, Any]) -> None:
    """No entry of a set makes us stumble."""
    able(entry)


# When the issuer is asked.


class Issuer:
    """What an issuer publishes: `document` is bytes or an error, `held` lets its answers wait for `release`."""

    def __init__(self, loop: HandLoop) -> None:
        self.loop = loop
        self.document: bytes | Exception = key_document(RSA)
        self.discovery: bytes | Exception = NotFetched("answered 404")
        self.asked: list[float] = []
        self.urls: list[str] = []
        self.held = False
        self._waiting: list[asyncio.Future[None]] = []

    async def __call__(self, url: str) -> bytes:
        self.asked.append(round(self.loop.now_s - 1000.0, 3))
        self.urls.append(url)
        if self.held:
            self._waiting.append(self.loop.create_future())
            await self._waiting[-1]
        found = self.discovery if url.endswith("/.well-known/openid-configuration") else self.document
        if isinstance(found, Exception):
            raise found
        return found

    def release(self) -> None:
        self.held = False
        for waiting in self._waiting:
            waiting.set_result(None)
        self._waiting = []
        self.loop.turn()


class Watched:
    """An issuer's keys, watched in a world whose time is turned by hand."""

    def __init__(self, **changes: Any) -> None:
        self.loop = HandLoop()
        self.issuer = Issuer(self.loop)
        self.withdrawn: list[str | None] = []
        self.told: list[str | None] = []
        told = {"name": "corp", "issuer": ISSUER, "audiences": ["pagegate"], "jwks_url": KEYS_URL} | {
            "algorithms": sorted(ALL)
        }
        self.keys = IssuerKeys(
            IssuerSettings.model_validate(told | changes),
            self.issuer,
            self.loop.time,
            random.Random(7),
            self._gone,
            self.told.append,
        )

    def _gone(self, keys: frozenset[PublicKey]) -> None:
        self.withdrawn += sorted(str(key.key_id) for key in keys)

    @contextmanager
    def running(self) -> Iterator["Watched"]:
        watching: asyncio.Task[Any] = self.loop.create_task(self.keys.watch())
        self.loop.turn()
        try:
            yield self
        finally:
            with self.loop.running():
                watching.cancel()
            self.loop.turn()
            assert watching.cancelled()
            assert not self.loop.errors

    def ask(self, key_id: str | None, algorithm: str = "ES256") -> "asyncio.Task[PublicKey | None]":
        """A call that waits for a key."""
        task = self.loop.create_task(self.keys.awaited(algorithm, key_id))
        self.loop.turn()
        return task

    def has(self, made: Signer) -> bool:
        return self.keys.find(made.algorithm, made.key_id) is not None


@pytest.fixture
def watched() -> Iterator[Watched]:
    with Watched().running() as one:
        yield one


def test_keys_are_fetched_at_once_and_from_then_on_with_jitter() -> None:
    """Never later than `refresh_s`, and not at the same moments as another gateway's."""
    with Watched(refresh_s=100).running() as watched:
        assert watched.has(RSA)
        watched.loop.pass_time(10_000)
        pauses = [later - earlier for earlier, later in pairwise(watched.issuer.asked)]
        assert all(80 <= pause <= 100 for pause in pauses)
        assert len(set(pauses)) > 50
        assert set(watched.told) == {None}
        assert repr(watched.keys) == "<IssuerKeys corp: 1 keys>"


def test_before_the_first_fetch_there_are_no_keys_and_who_comes_waits_for_it() -> None:
    """A start holds up nobody for longer than a call's patience."""
    watched = Watched()
    watched.issuer.held = True
    assert repr(watched.keys) == "<IssuerKeys corp: 0 keys, the last fetch failed: none yet>"
    assert not watched.has(RSA)
    with watched.running():
        early, late = watched.ask("rsa", "RS256"), watched.ask("rsa", "RS256")
        watched.loop.pass_time(PATIENCE_S / 2)
        assert not early.done()
        watched.issuer.release()
        key = early.result()
        assert key is not None
        assert key is late.result() is watched.keys.find("RS256", "rsa")
        assert len(watched.issuer.asked) == 1


def test_an_unknown_key_brings_the_next_fetch_forward(watched: Watched) -> None:
    """An issuer that signs with a new key at once is a second behind, not five minutes."""
    watched.loop.pass_time(COOLDOWN_S)
    watched.issuer.document = key_document(RSA, EC)
    assert watched.ask("ec").result() is watched.keys.find("ES256", "ec") is not None
    assert watched.issuer.asked == [0.0, COOLDOWN_S]
    assert watched.withdrawn == []
    assert watched.keys._absent == {}


def test_all_who_wait_for_a_key_share_one_fetch(watched: Watched) -> None:
    """Also those who come while it is under way; each gets the key that he asked for, or none."""
    watched.loop.pass_time(COOLDOWN_S)
    watched.issuer.document, watched.issuer.held = key_document(RSA, EC, EC_384), True
    waiting = [watched.ask(name) for name in ("ec", "ec", "nobody", None)] + [watched.ask("ec3", "ES384")]
    watched.loop.pass_time(PATIENCE_S / 2)
    waiting.append(watched.ask("ec"))
    watched.issuer.release()
    found = [task.result() for task in waiting]
    assert [key.key_id if key else None for key in found] == ["ec", "ec", None, "ec", "ec3", "ec"]
    assert len(watched.issuer.asked) == 2


def test_nobody_waits_longer_than_his_patience(watched: Watched) -> None:
    """A slow issuer's keys arrive for those who come later."""
    watched.loop.pass_time(COOLDOWN_S)
    watched.issuer.document, watched.issuer.held = key_document(RSA, EC), True
    waiting = watched.ask("ec")
    watched.loop.pass_time(PATIENCE_S - 0.01)
    assert not waiting.done()
    watched.loop.pass_time(0.02)
    assert waiting.result() is None
    watched.issuer.release()
    assert watched.has(EC)
    assert watched.keys._absent == {}, "nothing is known of a key whose fetch is not over"


def test_who_leaves_ends_no_fetch(watched: Watched) -> None:
    """It is made for all, beside the calls."""
    watched.loop.pass_time(COOLDOWN_S)
    watched.issuer.document, watched.issuer.held = key_document(RSA, EC), True
    leaving, staying = watched.ask("ec"), watched.ask("ec")
    with watched.loop.running():
        leaving.cancel()
    watched.loop.turn()
    assert leaving.cancelled()
    watched.issuer.release()
    assert staying.result() is not None


@pytest.mark.parametrize("outage", [None, NotFetched("answered 500"), RuntimeError("odd")], ids=["well", "500", "odd"])
def test_a_flood_of_unknown_keys_makes_no_flood_of_fetches(outage: Exception | None) -> None:
    """10,000 of them in ten minutes, and never two fetches within 30 s, whatever comes of them; known keys go on."""
    with Watched(refresh_s=300).running() as watched:
        if outage is not None:
            watched.issuer.document = outage
        rng = random.Random(3)
        for number in range(10_000):
            task = watched.ask(f"{number}-{rng.getrandbits(64):x}")
            watched.loop.pass_time(0.06)
            assert task.result() is None
            assert watched.has(RSA)
        pauses = [later - earlier for earlier, later in pairwise(watched.issuer.asked)]
        assert min(pauses) >= COOLDOWN_S
        assert 15 <= len(pauses) <= 20
        assert len(watched.keys._absent) <= MOST_ABSENT


def test_a_thousand_unknown_keys_at_once_are_one_fetch(watched: Watched) -> None:
    """And every one of them is answered within the same second."""
    watched.loop.pass_time(COOLDOWN_S)
    watched.issuer.held = True
    waiting = [watched.ask(f"unknown-{number}") for number in range(MOST_ABSENT + 100)]
    watched.issuer.release()
    assert [task.result() for task in waiting] == [None] * len(waiting)
    assert len(watched.issuer.asked) == 2
    assert len(watched.keys._absent) == MOST_ABSENT


def test_a_key_that_did_not_come_is_not_asked_for_again_for_a_while(watched: Watched) -> None:
    """Clients with a key of old ask once a minute, not twice; another key's fetch brings theirs, too."""
    watched.loop.pass_time(COOLDOWN_S)
    assert watched.ask("ec").result() is None
    watched.loop.pass_time(COOLDOWN_S)
    assert watched.ask("ec").result() is None
    assert len(watched.issuer.asked) == 2
    watched.issuer.document = key_document(RSA, EC)
    assert watched.ask("third").result() is None
    assert len(watched.issuer.asked) == 3
    assert watched.has(EC)


def test_a_key_that_did_not_come_may_be_asked_for_later(watched: Watched) -> None:
    """An issuer may sign with a key before the copies of its set have it."""
    watched.loop.pass_time(COOLDOWN_S)
    assert watched.ask("ec").result() is None
    watched.issuer.document = key_document(RSA, EC)
    watched.loop.pass_time(ABSENT_S - 0.1)
    assert watched.ask("ec").result() is None
    watched.loop.pass_time(0.2)
    assert watched.ask("ec").result() is not None


TROUBLES: dict[str, tuple[bytes | Exception, str]] = {
    "an outage": (NotFetched("no connection: Connection refused"), "no connection: Connection refused"),
    "an error": (NotFetched("answered 500"), "answered 500"),
    "an empty set": (b'{"keys":[]}', "the key set has no key that can be used"),
    "garbage": (b"<html>", "the key set is not JSON"),
    "another document": (b'{"issuer":"https://id.example"}', "the key set has no list of keys"),
    "keys that are too short": (key_document({"kty": "RSA", "n": "AQAB", "e": "AQAB"}), "no key that can be used"),
    "what nobody thought of": (RuntimeError("https://id.example/secret"), "cannot be read (RuntimeError)"),
}


@pytest.mark.parametrize(("document", "why"), TROUBLES.values(), ids=TROUBLES)
def test_the_last_good_keys_hold_through_trouble(document: bytes | Exception, why: str) -> None:
    """Until `max_stale_s` is over; then there are none, until the issuer is well again."""
    with Watched(refresh_s=60, max_stale_s=600).running() as watched:
        watched.issuer.document = document
        watched.loop.pass_time(599.9)
        assert watched.has(RSA)
        assert why in str(watched.told[-1])
        assert why in repr(watched.keys)
        assert watched.withdrawn == []
        watched.loop.pass_time(0.2)
        assert not watched.has(RSA)
        assert not watched.keys.hold
        watched.issuer.document = key_document(EC)
        watched.loop.pass_time(RETRY_S * 1.2)
        assert watched.has(EC)
        assert not watched.has(RSA)
        assert watched.told[-1] is None


def test_trouble_is_retried_sooner_and_more_slowly_the_longer_it_lasts() -> None:
    """At a start without keys from a second on, doubling up to half a minute; with keys every half minute."""
    watched = Watched(refresh_s=300)
    watched.issuer.document = NotFetched("answered 503")
    with watched.running():
        watched.loop.pass_time(200)
        pauses = [later - earlier for earlier, later in pairwise(watched.issuer.asked)]
        for number, pause in enumerate(pauses):
            least_s = min(RETRY_S, FIRST_RETRY_S * 2**number)
            assert least_s <= pause <= 1.2 * least_s + 0.001
        watched.issuer.document = key_document(RSA)
        watched.loop.pass_time(RETRY_S * 1.2)
        assert watched.has(RSA)
        watched.issuer.document = NotFetched("answered 503")
        watched.issuer.asked.clear()
        watched.loop.pass_time(600)
        pauses = [later - earlier for earlier, later in pairwise(watched.issuer.asked)]
        assert all(RETRY_S <= pause <= RETRY_S * 1.2 for pause in pauses)


def test_thousands_of_failures_do_not_overflow() -> None:
    """An issuer may be away for months."""
    watched = Watched(refresh_s=300)
    watched.issuer.document = NotFetched("answered 503")
    with watched.running():
        watched.loop.pass_time(RETRY_S * 3000)
        assert len(watched.issuer.asked) > 2000


def test_a_key_that_is_published_no_more_is_withdrawn() -> None:
    """With the next fetch that succeeds, and not by one that fails."""
    with Watched(refresh_s=50).running() as watched:
        watched.issuer.document = key_document(RSA, EC)
        watched.loop.pass_time(50)
        watched.issuer.document = b""
        watched.loop.pass_time(50)
        assert watched.withdrawn == []
        watched.issuer.document = key_document(EC)
        watched.loop.pass_time(50)
        assert watched.withdrawn == ["rsa"]
        assert (watched.has(RSA), watched.has(EC)) == (False, True)


def test_a_slow_issuer_does_not_make_its_keys_fresher() -> None:
    """Keys are as old as the question for them, not as the answer."""
    watched = Watched(refresh_s=10_000, max_stale_s=100)
    watched.issuer.held = True
    with watched.running():
        watched.loop.pass_time(4)
        watched.issuer.release()
        watched.loop.pass_time(95.9)
        assert watched.has(RSA)
        watched.loop.pass_time(0.2)
        assert not watched.has(RSA)


# Where the keys are.


@pytest.mark.parametrize(
    ("issuer", "url"),
    [
        ("https://id.example", "https://id.example/.well-known/openid-configuration"),
        ("https://id.example/", "https://id.example/.well-known/openid-configuration"),
        ("https://id.example/realms/corp", "https://id.example/realms/corp/.well-known/openid-configuration"),
        ("https://id.example/realms/corp/", "https://id.example/realms/corp/.well-known/openid-configuration"),
    ],
)
def test_the_issuer_says_where_its_keys_are(issuer: str, url: str) -> None:
    """OpenID Connect Discovery 1.0, section 4: below the issuer, also where that has a path."""
    watched = Watched(issuer=issuer, jwks_url=None)
    watched.issuer.discovery = json.dumps({"issuer": issuer, "jwks_uri": KEYS_URL}).encode()
    with watched.running():
        assert watched.issuer.urls == [url, KEYS_URL]
        assert watched.has(RSA)


@pytest.mark.parametrize(
    ("discovery", "why"),
    [
        ({"issuer": "https://evil.example", "jwks_uri": KEYS_URL}, "is another issuer's"),
        ({"issuer": ISSUER + "/", "jwks_uri": KEYS_URL}, "is another issuer's"),
        ({"issuer": None, "jwks_uri": KEYS_URL}, "is another issuer's"),
        ({"jwks_uri": KEYS_URL}, "is another issuer's"),
        ({"issuer": ISSUER}, "names no key set"),
        ({"issuer": ISSUER, "jwks_uri": None}, "names no key set"),
        ({"issuer": ISSUER, "jwks_uri": [KEYS_URL]}, "names no key set"),
        ({"issuer": ISSUER, "jwks_uri": "http://keys.example/set"}, "names a key set without TLS"),
        ({"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"}, "names a key set without TLS"),
        ({"issuer": ISSUER, "jwks_uri": ""}, "names a key set without TLS"),
        ([], "is not JSON"),
        ("nothing", "is not JSON"),
    ],
)
def test_a_discovery_document_must_be_the_issuers_own(discovery: object, why: str) -> None:
    """And may not lead us away from TLS."""
    watched = Watched(jwks_url=None)
    watched.issuer.discovery = json.dumps(discovery).encode()
    with watched.running():
        assert len(watched.issuer.urls) == 1
        assert why in str(watched.told[-1])
        assert not watched.has(RSA)


def test_an_issuer_without_tls_may_have_keys_without_tls() -> None:
    """Where the settings trust the network, so may the document."""
    watched = Watched(issuer="http://127.0.0.1:8000", jwks_url=None)
    watched.issuer.discovery = b'{"issuer":"http://127.0.0.1:8000","jwks_uri":"http://127.0.0.1:8000/keys"}'
    with watched.running():
        assert watched.has(RSA)
