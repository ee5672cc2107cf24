"""Brings the tables to the form that this version of the gateway wants; `versions/` has the steps, one file each.

Alembic runs them, without its global context: a step is `upgrade(op)`. Steps only add what an older gateway does not
mind, so that old and new ones work on one database during an update, and an older one starts on newer tables.
"""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

FOLDER = Path(__file__).parent


def upgrade(connection: Connection) -> None:
    """Makes the steps that are missing, within the caller's transaction. The caller keeps others from doing so."""
    known = {step.name.partition("_")[0] for step in FOLDER.glob("versions/[0-9]*.py")}
    if not _is_new(connection, max(known)):
        return
    # Alembic is only loaded where there is something to do.
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    steps = ScriptDirectory(FOLDER)

    def missing(present: tuple[str, ...], _: MigrationContext) -> list[object]:
        newer = not known.issuperset(present)
        return [] if newer else steps._upgrade_revs("head", present)  # type: ignore[arg-type,return-value]

    context = MigrationContext.configure(connection, opts={"fn": missing})
    context.run_migrations(op=Operations(context))


def _is_new(connection: Connection, newest: str) -> bool:
    """Whether the tables are not those of the step `newest`, as far as one can tell at a glance."""
    if not inspect(connection).has_table("alembic_version"):
        return True
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all() != [newest]
