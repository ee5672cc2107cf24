"""Keys: a credential becomes a principal, and nothing that is held or printed tells a key."""

import re
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import NoKey, Refused, UnknownKey
from gateway.identity.directory import Directory
from gateway.identity.failures import Failures
from gateway.identity.identities import Identities
from gateway.identity.keys import LONGEST_KEY, cache_salt, digest, ensure_secret, new_key
from gateway.identity.principal import Principal, Tenant
from gateway.settings import IdentitySettings, KeySettings, Limits, TenantSettings
from tests.unit.splitting import thorough

SECRET = b"a secret of the tests"
KEY = "pg-canary-key"
TEAM = Limits(concurrent_calls=3)


def identities(*held: KeySettings) -> Identities:
    own = held or (KeySettings(name="mine", digest=digest(KEY, SECRET), tenant="team"),)
    settings = IdentitySettings.model_validate(
        {"secret": SECRET.decode(), "tenants": [TenantSettings(name="team", limits=TEAM)], "keys": own}
    )
    wall, clock = (lambda: 0.0), (lambda: 0.0)
    return Identities(Directory(settings, (), SECRET, wall), None, Failures(1000, clock))


pytestmark = pytest.mark.anyio


async def test_a_key_becomes_its_principal() -> None:
    """With the tenant that it acts for, and the limits of both."""
    own = Limits(requests_per_minute=7)
    key = KeySettings(name="mine", digest=digest(KEY, SECRET), tenant="team", models=("a", "b-*"), limits=own)
    found = await identities(key).authenticate(KEY, "")
    assert (found.id, found.name, found.models, found.limits) == ("key/mine", "mine", ("a", "b-*"), own)
    tenant = found.tenant
    assert (tenant.name, tenant.limits, tenant.cache_salt) == ("team", TEAM, cache_salt("team", SECRET))


@pytest.mark.parametrize(
    ("credential", "refusal"),
    [
        pytest.param(None, NoKey, id="none"),
        pytest.param("", NoKey, id="an empty one"),
        pytest.param(KEY + " ", UnknownKey, id="a space too many"),
        pytest.param(KEY[:-1], UnknownKey, id="a letter too few"),
        pytest.param(KEY.upper(), UnknownKey, id="in capitals"),
        pytest.param(digest(KEY, SECRET), UnknownKey, id="its digest"),
        pytest.param("*", UnknownKey, id="a pattern"),
        pytest.param("x" * LONGEST_KEY, UnknownKey, id="a long one"),
        pytest.param("x" * 10_000_000, UnknownKey, id="one that is not even hashed"),
        pytest.param(KEY + "x" * LONGEST_KEY, UnknownKey, id="the key and much more"),
        pytest.param("\x00\r\n'; DROP TABLE keys; --", UnknownKey, id="nonsense"),
        pytest.param("ключ🦄\udcff\ud800", UnknownKey, id="no ASCII, no characters even"),
    ],
)
async def test_whatever_is_no_key_is_refused(credential: str | None, refusal: type[Refused]) -> None:
    """One text for all that is wrong, so that nothing is learnt from it."""
    with pytest.raises(refusal) as caught:
        await identities().authenticate(credential, "")
    assert caught.value.message == refusal().message
    assert credential is None or len(credential) < 2 or credential not in caught.value.message


async def test_a_long_key_is_a_key() -> None:
    """Up to the limit, to the letter."""
    long = "k" * LONGEST_KEY
    held = identities(KeySettings(name="long", digest=digest(long, SECRET), tenant="team"))
    assert (await held.authenticate(long, "")).name == "long"
    with pytest.raises(UnknownKey):
        await held.authenticate(long + "k", "")


def test_a_key_is_worth_nothing_under_another_secret() -> None:
    """Digests that leak are no keys, and cannot be tried elsewhere."""
    assert digest(KEY, SECRET) != digest(KEY, b"another secret of the tests")
    assert re.fullmatch("[0-9a-f]{64}", digest(KEY, SECRET))


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 4096])
def test_a_secret_may_have_any_length(length: int) -> None:
    """BLAKE2b takes 64 bytes; the last byte of a longer one still counts."""
    secret = b"s" * length
    assert digest(KEY, secret) != digest(KEY, secret + b"x")
    assert cache_salt("team", secret) != cache_salt("team", secret + b"x")


def test_new_keys_are_long_different_and_sendable() -> None:
    """256 random bits in letters that any header takes."""
    made = {new_key() for _ in range(100)}
    assert len(made) == 100
    assert all(re.fullmatch(r"pg-[A-Za-z0-9_-]{43}", key) for key in made)


@thorough
@given(st.text(max_size=200), st.binary(max_size=100))
def test_salts_are_what_engines_accept_and_nobody_guesses(tenant: str, secret: bytes) -> None:
    """vLLM wants at most 128 characters, not empty, none of @ / backslash NUL; ours depend on tenant and secret."""
    if any(0xD800 <= ord(letter) < 0xE000 for letter in tenant):
        return
    salt = cache_salt(tenant, secret)
    assert 0 < len(salt) <= 128
    assert not set(salt) & set("@/\\\0")
    assert salt == cache_salt(tenant, secret)
    assert salt not in {cache_salt(tenant + "x", secret), cache_salt(tenant, secret + b"x"), digest(tenant, secret)}


async def test_nothing_prints_a_key_a_secret_or_a_salt() -> None:
    """Neither the keys, nor a principal, nor the settings they came from."""
    held = identities()
    principal = await held.authenticate(KEY, "")
    identity = IdentitySettings.model_validate({"secret": SECRET.decode()})
    for printed in (f"{held!r} {held}", f"{principal!r} {principal}", f"{identity!r} {identity}"):
        for hidden in (KEY, SECRET.decode(), cache_salt("team", SECRET)):
            assert hidden not in printed
    assert repr(held) == "<Identities <Directory 1 keys, 1 tenants, revision 0>, <Failures of 0 addresses>>"


@pytest.mark.parametrize(
    ("patterns", "model", "may"),
    [
        (("*",), "anything/at-all", True),
        (("tiny",), "tiny", True),
        (("tiny",), "tiny2", False),
        (("tiny",), "Tiny", False),
        (("tiny-*",), "tiny-chat", True),
        (("tiny-*",), "tiny", False),
        (("org/*",), "org/a/b", True),
        (("a", "b?"), "b7", True),
        (("a[12]",), "a2", True),
        (("a[12]",), "a3", False),
        ((".*",), "anything", False),
        ((), "tiny", False),
        (("",), "tiny", False),
    ],
)
def test_which_models_a_principal_may_call(patterns: Iterable[str], model: str, may: bool) -> None:
    """Shell patterns on the canonical name, the tenant's as well as its own; no pattern, no model."""
    everything, some = ("*",), tuple(patterns)
    assert Principal("key/p", "p", Tenant("t", Limits(), "", everything), some).may_call(model) is may
    assert Principal("key/p", "p", Tenant("t", Limits(), "", some), everything).may_call(model) is may


def test_a_missing_secret_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    """And read back after that, however the file ends."""
    path = tmp_path / "secret"
    made = ensure_secret(path)
    assert len(made) >= 48
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ensure_secret(path) == made
    path.write_bytes(made + b"\r\n\n")
    assert ensure_secret(path) == made
    assert list(tmp_path.iterdir()) == [path]


def test_of_many_that_make_a_secret_at_once_all_get_the_same(tmp_path: Path) -> None:
    """Nobody hashes keys under a secret that was overwritten, or reads half of one."""
    for number in range(20):
        together, path = Barrier(8), tmp_path / f"secret{number}"

        def make(together: Barrier = together, path: Path = path) -> bytes:
            together.wait()
            return ensure_secret(path)

        with ThreadPoolExecutor(8) as pool:
            made = {future.result() for future in [pool.submit(make) for _ in range(8)]}
        assert made == {path.read_bytes().strip()}
    assert len(list(tmp_path.iterdir())) == 20


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"fifteen bytes..\n"])
def test_a_file_without_a_secret_is_an_error(tmp_path: Path, content: bytes) -> None:
    """Keys hashed under nothing could be guessed."""
    path = tmp_path / "secret"
    path.write_bytes(content)
    with pytest.raises(OSError, match="holds no secret"):
        ensure_secret(path)
    assert path.read_bytes() == content


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    """Which whoever asked for the secret can name."""
    with pytest.raises(FileNotFoundError):
        ensure_secret(tmp_path / "nowhere" / "secret")
