"""Databases for the tests of the store."""

from tests.databases import postgres_server, store, store_url

__all__ = ["postgres_server", "store", "store_url"]
