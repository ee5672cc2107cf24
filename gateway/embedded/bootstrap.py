"""The keys of `pagegate up`: the one that it prints, and the one that the commands on this machine administer with.

What they may do is written by `one_machine`; they are known to the gateway by their digests only.
"""

from pydantic import SecretStr

from gateway.embedded.state_folder import StateFolder
from gateway.identity.keys import ADMIN_KEY_PREFIX, LONGEST_KEY, new_key

SHORT_KEY = 16


class BadKey(Exception):
    """A key that no caller could send."""


def bootstrap_key(given: SecretStr | None, state: StateFolder) -> str:
    """The key. One that is given is not stored. Raises BadKey, OSError."""
    if given is not None:
        return _sendable(given.get_secret_value(), "PAGEGATE_BOOTSTRAP_KEY")
    if state.bootstrap_key.exists():
        return _sendable(state.bootstrap_key.read_text(encoding="utf-8").strip(), str(state.bootstrap_key))
    key = new_key()
    state.write(state.bootstrap_key, key + "\n")
    return key


def administrators_key(state: StateFolder) -> str:
    """The key for the admin API: the stored one, else a new one, stored. Raises BadKey, OSError."""
    if state.admin_key.exists():
        return _sendable(state.admin_key.read_text(encoding="utf-8").strip(), str(state.admin_key))
    key = new_key(ADMIN_KEY_PREFIX)
    state.write(state.admin_key, key + "\n")
    return key


def _sendable(key: str, source: str) -> str:
    if not 0 < len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise BadKey(f"{source} must have 1 to {LONGEST_KEY} printable ASCII characters and no spaces")
    return key
