"""What the settings file declares of keys and tenants: it is shown beside the database's and cannot be changed here.

The file wins: a row of the database with the same name is shadowed by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from gateway.settings import AdminKeySettings, AdminSettings, IdentitySettings, KeySettings, TenantSettings


@dataclass(frozen=True, slots=True)
class Declared:
    """Keys, administrators' keys and tenants of the file, by name."""

    keys: Mapping[str, KeySettings]
    administrators: Mapping[str, AdminKeySettings]
    tenants: Mapping[str, TenantSettings]

    @classmethod
    def of(cls, identity: IdentitySettings, admin: AdminSettings) -> Self:
        return cls(
            {key.name: key for key in identity.keys},
            {key.name: key for key in admin.keys},
            {tenant.name: tenant for tenant in identity.tenants},
        )

    def has_key(self, name: str) -> bool:
        """Whether a key of this name, a caller's or an administrator's, is the file's."""
        return name in self.keys or name in self.administrators
