"""Alembic, over one connection: what it applies, compares and prints for the installed wheels."""

import io
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import redirect_stdout
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from alembic import command
from alembic.autogenerate import produce_migrations
from alembic.config import Config
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, text

from ibex_db_core.base import SCHEMA
from ibex_db_core.distribution.cluster import has_citus, is_distributed
from ibex_db_core.errors import MigrationError
from ibex_db_core.migrations import signing
from ibex_db_core.migrations.wheels import Revision, metadata, wheels
from ibex_db_core.policies import SIGNING_KEYS

if TYPE_CHECKING:
    from alembic.runtime.environment import EnvironmentContext

# Alembic's `op` and `context` are one for the whole process: two databases that
# migrate at once would run each other's statements.
ALONE = threading.Lock()


def _config(output: io.StringIO | None = None) -> Config:
    config = Config(output_buffer=output) if output is not None else Config()
    core = Path(str(files("ibex_db_core") / "migrations"))
    locations = [Path(str(files(package) / "migrations" / "versions")) for package in wheels().values()]
    config.set_main_option("script_location", _escaped(core))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", "\n".join(_escaped(path) for path in locations if path.is_dir()))
    return config


def _escaped(path: Path) -> str:
    return str(path).replace("%", "%%")  # ConfigParser interpolates


def configure_online(context: "EnvironmentContext") -> None:
    """Tell Alembic about our schema; called from env.py."""
    connection = cast("Connection", context.config.attributes["connection"])
    options = comparison(connection)
    connection.rollback()  # reading began a transaction; Alembic wants to begin its own
    context.configure(
        connection=connection, transaction_per_migration=True, on_version_apply=_sign_new, **cast("Any", options)
    )


def _sign_new(  # Alembic passes all four, by name
    ctx: MigrationContext,
    step: object,  # noqa: ARG001
    heads: Collection[object],  # noqa: ARG001
    run_args: Mapping[str, object],  # noqa: ARG001
) -> None:
    """Sign what a revision made, within its transaction, where the database has signing on."""
    if ctx.connection is not None:
        signing.sign_new(ctx.connection, metadata())


def comparison(connection: Connection) -> dict[str, object]:
    """Return what to compare: our schema only, and partitions through their parent."""
    of_schema = "JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = :schema"
    skipped = set(
        connection.scalars(
            text(f"SELECT c.relname FROM pg_catalog.pg_class c {of_schema} AND c.relispartition"), {"schema": SCHEMA}
        )
    ) | {"alembic_version", SIGNING_KEYS}
    # A key to a partitioned table stands in the catalog once more for each of
    # its partitions; those copies name the declared one as their parent.
    copies = {
        (table, constraint)
        for table, constraint in connection.execute(
            text(
                "SELECT c.relname, k.conname FROM pg_catalog.pg_constraint k "
                f"JOIN pg_catalog.pg_class c ON c.oid = k.conrelid {of_schema} AND k.conparentid <> 0"
            ),
            {"schema": SCHEMA},
        )
    }

    def include(name: str | None, kind: str, parents: Mapping[str, str | None]) -> bool:
        if kind == "schema":
            return name == SCHEMA
        if kind == "foreign_key_constraint":
            return (parents["table_name"], name) not in copies
        return not (kind == "table" and name in skipped)

    return {
        "target_metadata": metadata(),
        "version_table_schema": SCHEMA,
        "include_schemas": True,
        "include_name": include,
        "compare_type": True,
        "compare_server_default": True,
    }


def compared(connection: Connection, models: MetaData) -> tuple[MigrationScript, list[str]]:
    """Return what Alembic would do to the database, and what it sees and cannot do: generated columns."""
    options = {**comparison(connection), "target_metadata": models}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        script = produce_migrations(MigrationContext.configure(connection, opts=options), models)
    complaints = [str(warning.message) for warning in caught if "cannot be modified" in str(warning.message)]
    return script, complaints


def upgrade(connection: Connection, revision: str) -> list[Revision]:
    """Apply what is missing up to a revision, and return that."""
    # Asked first: IF NOT EXISTS would want CREATE on the database of a
    # later migrator, who is no more than a member of the owner role.
    if has_citus(connection) and not is_distributed(connection):
        # Its turn is later, whole and in order: `ibex-db distribute`.
        connection.execute(text("SET citus.enable_ddl_propagation = off"))
    if connection.scalar(text("SELECT to_regnamespace(:schema)"), {"schema": SCHEMA}) is None:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
    # A data migration by the forced owner would update no row and say
    # nothing; this makes it an error.
    connection.execute(text("SET row_security = off"))
    connection.commit()
    before = _applied(connection)
    connection.rollback()  # as in configure_online
    _run(connection, lambda config: command.upgrade(config, revision))
    after = _applied(connection)
    return [step for step in revisions(after) if step.applied and step.id not in before]


def downgrade(connection: Connection, revision: str) -> None:
    """Take back what is past a revision."""
    _run(connection, lambda config: command.downgrade(config, revision))


def differences(connection: Connection) -> list[str]:
    """Say in words how the live schema differs from the models."""
    from ibex_db_core.doctor.audit import ISOLATION, examine  # the room above, which stands on this one

    script, complaints = compared(connection, metadata())
    operations = script.upgrade_ops
    drift = [told(one) for one in operations.as_diffs()] if operations is not None else []
    isolation = examine(connection, checks=ISOLATION).findings
    return [*drift, *complaints, *(f"{found.object}: {found.risk} ({found.code})" for found in isolation)]


def sql(revision: str) -> str:
    """Return the SQL of a full upgrade."""
    output = io.StringIO()
    if not ALONE.acquire(blocking=False):
        raise MigrationError("a migration is running in this process: print its SQL before or after")
    try:
        with redirect_stdout(output):  # Alembic prints to both, by the option
            command.upgrade(_config(output), revision, sql=True)
    except CommandError as exc:
        raise _unknown(exc) from exc
    finally:
        ALONE.release()
    return output.getvalue()


def _run(connection: Connection, what: Callable[[Config], object]) -> None:
    config = _config()
    config.attributes["connection"] = connection
    try:
        what(config)
    except CommandError as exc:
        raise _unknown(exc) from exc
    except Exception as exc:
        raise MigrationError(f"migration failed and was rolled back: {exc}") from exc


def _unknown(exc: CommandError) -> MigrationError:
    return MigrationError(
        f"{exc}. Nothing was changed. `ibex-db current` lists the revisions of the installed wheels; "
        "one that they lack is in another version of them"
    )


def _applied(connection: Connection) -> set[str]:
    """Return the applied revisions, ancestors included."""
    context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
    heads = context.get_current_heads()
    script = ScriptDirectory.from_config(_config())
    known = [head for head in heads if _known(script, head)]
    if not known:
        return set()
    steps = script.revision_map.iterate_revisions(tuple(known), "base", implicit_base=True, inclusive=True)
    return {step.revision for step in steps}


def steps(connection: Connection) -> list[Revision]:
    """Return every revision of the installed wheels, each with whether it is applied."""
    return revisions(_applied(connection))


def strangers(connection: Connection) -> list[str]:
    """Return the revisions that the database is at and that no installed wheel knows."""
    script = ScriptDirectory.from_config(_config())
    context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
    return [head for head in context.get_current_heads() if not _known(script, head)]


def _known(script: ScriptDirectory, revision: str) -> bool:
    return any(step.revision == revision for step in script.walk_revisions())


def revisions(applied: Iterable[str]) -> list[Revision]:
    """Return every revision of the installed wheels, lower wheels and older ones first."""
    script = ScriptDirectory.from_config(_config())
    order = list(wheels())
    steps = [
        Revision(
            id=step.revision,
            wheel=next((label for label in order if label in step.branch_labels), "?"),
            message=step.doc,
            applied=step.revision in set(applied),
        )
        for step in reversed(list(script.walk_revisions()))
    ]
    return sorted(steps, key=lambda step: order.index(step.wheel) if step.wheel in order else len(order))


def told(difference: object) -> str:
    """Say in words what Alembic found; what we have no words for is quoted."""
    if isinstance(difference, list):
        return "; ".join(told(part) for part in cast("list[object]", difference))
    kind, *parts = cast("tuple[str, *tuple[Any, ...]]", difference)
    verb, _, what = kind.partition("_")
    if verb == "modify":
        _schema, table, column, _existing, live, expected = parts
        return f"column {table}.{column}: {what} is {live} in the database, {expected} in the models"
    if verb not in {"add", "remove"}:
        return " ".join(map(str, (kind, *parts)))
    named = parts[-1]
    owner = getattr(named, "table", None)
    if what == "column":
        name = f"{parts[1]}.{named.name}"
    else:
        name = f"{named.name} on {owner.name}" if owner is not None else str(named.name)
    what = {"fk": "foreign key"}.get(what, what)
    return f"{what} {name} is " + ("missing in the database" if verb == "add" else "in the database and in no model")
