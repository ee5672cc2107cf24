"""From a credential to whoever presents it: a key, or a token that an issuer signed. Whatever is neither is refused.

What is wrong with a credential is told to nobody: all that fail look the same to the caller.
"""

from hashlib import blake2b
from typing import Protocol

from gateway.errors import KeysUnknown, NoKey, TooManyFailures, UnknownKey
from gateway.identity.directory import Directory
from gateway.identity.failures import Failures
from gateway.identity.jws import looks_like_token
from gateway.identity.keys import LONGEST_KEY
from gateway.identity.principal import Administrator, Principal
from gateway.settings import Role

MOST_TOKENS = 10_000
LONGEST_NAME = 200


class Verified(Protocol):
    """What a token says that was found to be good."""

    @property
    def issuer(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def tenant(self) -> str | None: ...
    @property
    def models(self) -> tuple[str, ...]: ...
    @property
    def role(self) -> Role | None: ...


class Tokens(Protocol):
    """Judges tokens. `known` has seen the token before and waits for nothing; both raise UnknownKey."""

    def known(self, token: str) -> Verified | None: ...
    async def verify(self, token: str) -> Verified: ...


class Identities:
    """Finds out who calls. `tokens` is None where no issuer is configured."""

    def __init__(self, directory: Directory, tokens: Tokens | None, failures: Failures) -> None:
        self._directory = directory
        self._tokens = tokens
        self._failures = failures
        # Callers by token: who they are must stay the same value while nothing about them changes.
        self._bearers: dict[tuple[str, str, tuple[str, ...]], Principal] = {}

    @property
    def ready(self) -> bool:
        """Whether all keys are known that there are."""
        return self._directory.complete

    async def authenticate(self, credential: str | None, address: str) -> Principal:
        """Who calls. Raises NoKey, UnknownKey, and TooManyFailures for an address that had many of these.

        Raises KeysUnknown while the database of keys has not been read yet.
        """
        who: Principal | Administrator | None
        if credential and self._is_token(credential):
            who = self._bearer(await self._verified(credential, address))
        else:
            who = self._holder(credential, address)
        if not isinstance(who, Principal):
            raise self._failed(address, UnknownKey())
        return who

    async def administrator(self, credential: str | None, address: str) -> Administrator:
        """Who administers. Raises the same; a caller's key is no administrator's."""
        if credential and self._is_token(credential):
            token = await self._verified(credential, address)
            if token.role is not None:
                return Administrator(_name(token), token.role)
            raise self._failed(address, UnknownKey())
        who = self._holder(credential, address)
        if not isinstance(who, Administrator):
            raise self._failed(address, UnknownKey())
        return who

    def _is_token(self, credential: str) -> bool:
        return self._tokens is not None and looks_like_token(credential)

    def _holder(self, credential: str | None, address: str) -> Principal | Administrator | None:
        if not credential:
            raise self._failed(address, NoKey())
        who = self._directory.find(credential) if len(credential) <= LONGEST_KEY else None
        if who is None and not self._directory.complete:
            raise KeysUnknown
        return who

    async def _verified(self, token: str, address: str) -> Verified:
        assert self._tokens is not None
        try:
            return self._tokens.known(token) or await self._tokens.verify(token)
        except UnknownKey as error:
            raise self._failed(address, error) from None

    def _bearer(self, verified: Verified) -> Principal | None:
        tenant = self._directory.tenant(verified.tenant) if verified.tenant is not None else None
        if tenant is None:
            return None
        name = _name(verified)
        known = self._bearers.get((name, tenant.name, verified.models))
        if known is None or known.tenant is not tenant:
            known = Principal(f"token/{name}", name, tenant, verified.models, priority=tenant.priority)
            if len(self._bearers) >= MOST_TOKENS:
                self._bearers.clear()
            self._bearers[name, tenant.name, verified.models] = known
        return known

    def _failed(self, address: str, error: NoKey | UnknownKey) -> NoKey | UnknownKey | TooManyFailures:
        wait_s = self._failures.wait_s(address)
        return TooManyFailures(wait_s) if wait_s else error

    def __repr__(self) -> str:
        return f"<Identities {self._directory!r}, {self._failures!r}>"


def _name(verified: Verified) -> str:
    """The subject with its issuer; no issuer's name holds the sign between them.

    What is longer than the books keep ends in a digest of the whole.
    """
    name = f"{verified.issuer}#{verified.subject}"
    if len(name) <= LONGEST_NAME:
        return name
    mark = blake2b(name.encode(), digest_size=16).hexdigest()
    return f"{name[: LONGEST_NAME - len(mark) - 1]}~{mark}"
