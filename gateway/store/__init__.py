"""The database: keys, tenants, usage and the audit log, in SQLite on one machine or PostgreSQL for many.

`rows` and `database` may be imported by anybody at any time. All other modules here import SQLAlchemy, which costs a
gateway without a store half a second and 25 MiB for nothing: import them late, where a `Database` is at hand.
"""
