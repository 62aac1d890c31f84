"""Alembic, over one connection: what it applies, compares and prints for the installed wheels."""

import copy
import io
import logging
import re
import threading
import warnings
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from alembic import command
from alembic.autogenerate import produce_migrations
from alembic.config import Config
from alembic.operations.ops import MigrationScript
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext, RevisionStep
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, text

from ibex_db_core.base import SCHEMA
from ibex_db_core.distribution.cluster import has_citus, is_distributed
from ibex_db_core.errors import DeadlockError, DestructiveMigrationError, LockTimeoutError, MigrationError
from ibex_db_core.migrations import signing
from ibex_db_core.migrations.wheels import Revision, metadata, wheels
from ibex_db_core.policies import SIGNING_KEYS
from ibex_db_core.translation import translate

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


def configure_online(context: EnvironmentContext) -> None:
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


def history() -> ScriptDirectory:
    """Return the revisions of every installed wheel, read once for what follows."""
    return ScriptDirectory.from_config(_config())


def pending(
    connection: Connection, script: ScriptDirectory, revision: str, *, down: bool = False
) -> tuple[tuple[str, ...], list[RevisionStep]]:
    """Return the revisions that the database is at, and the steps from there to another one, in their order.

    Raises:
        MigrationError: there is no such revision.
    """
    context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
    heads = context.get_current_heads()
    connection.rollback()  # reading began a transaction; Alembic wants to begin its own
    # What alembic.command calls: the public verbs run what they find at once.
    find: Any = getattr(script, "_downgrade_revs" if down else "_upgrade_revs")
    try:
        return heads, list(find(revision, heads))
    except CommandError as exc:
        raise _unknown(exc) from exc


def prepare(connection: Connection) -> None:
    """Make the schema where it is missing, and have a data migration that the policies would empty fail."""
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


def apply(connection: Connection, script: ScriptDirectory, step: RevisionStep) -> None:
    """Apply one step, or take it back, in a transaction of its own.

    Raises:
        LockTimeoutError: it did not get a lock; DeadlockError: it gave way.
        MigrationError: it failed, and was rolled back.
    """
    config = _config()
    config.attributes["connection"] = connection

    def only(_heads: object, _context: object) -> list[RevisionStep]:
        return [step]

    try:
        with EnvironmentContext(config, script, fn=only):
            script.run_env()
    except CommandError as exc:
        raise _unknown(exc) from exc
    except Exception as exc:
        ours = translate(exc)
        if isinstance(ours, (LockTimeoutError, DeadlockError, DestructiveMigrationError)):
            if ours is exc:
                raise
            raise ours from exc
        raise MigrationError(f"migration failed and was rolled back: {exc}") from exc


def statements(script: ScriptDirectory, steps: Iterable[RevisionStep], heads: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the SQL of each step, as it is known without a database: nothing for what asks one."""
    output = _Pieces()
    config = _config(output)
    quiet = [copy.copy(step) for step in steps]
    for step in quiet:
        step.migration_fn = _offline(step.migration_fn)

    def those(_heads: object, _context: object) -> list[RevisionStep]:
        return quiet

    with (
        _unsaid(),
        redirect_stdout(output),
        EnvironmentContext(config, script, fn=those, as_sql=True, starting_rev=cast("Any", heads or None)),
    ):
        script.run_env()
    found: dict[str, list[str]] = {}
    at = iter(quiet)
    current: list[str] | None = None
    for piece in output.pieces:
        if piece.startswith("-- Running "):
            current = found.setdefault(next(at).revision.revision, [])
        elif current is not None and piece.strip() and not _BOOKKEEPING.search(piece):
            current.append(piece.strip())
    return found


# Alembic's own words of a script: its transactions, and its table.
_BOOKKEEPING = re.compile(
    r"^\s*(?:BEGIN|COMMIT)\s*;?\s*$|(?:INTO|UPDATE|FROM|TABLE)\s+ibex_core\.alembic_version", re.IGNORECASE
)


@contextmanager
def _unsaid() -> Generator[None]:
    """Keep Alembic from logging steps that nobody takes."""
    log = logging.getLogger("alembic.runtime.migration")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


class _Pieces(io.StringIO):
    """An output that remembers each thing written to it on its own: Alembic writes one statement at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str, /) -> int:
        self.pieces.append(text)
        return super().write(text)


def _offline(migrate: Callable[..., Any]) -> Callable[..., Any]:
    def attempt(**options: object) -> None:
        # A revision that asks the database has no SQL without one: the guard then reads it while it runs.
        with suppress(Exception):
            migrate(**options)

    return attempt


def differences(connection: Connection) -> list[str]:
    """Say in words how the live schema differs from the models."""
    from ibex_db_core.doctor.audit import ISOLATION, copies_under_way, examine  # the room above, on top of this one

    models = metadata()
    script, complaints = compared(connection, models)
    operations = script.upgrade_ops
    copies = copies_under_way(connection, models)  # told below, as one
    diffs = cast("list[Any]", [] if operations is None else operations.as_diffs())
    if is_distributed(connection):  # where keys differ by intent: the constraints' check, below, knows in what
        diffs = [one for one in diffs if one[0] not in {"add_fk", "remove_fk"}]
    drift = [told(one) for one in diffs if not _of(one, copies)]
    isolation = examine(connection, checks=ISOLATION).findings
    return [*drift, *complaints, *(f"{found.object}: {found.risk} ({found.code})" for found in isolation)]


def _of(difference: object, tables: frozenset[str]) -> bool:
    """Tell whether a difference is one table too many, or an index of it, of those named."""
    if not isinstance(difference, tuple):
        return False  # a list: a column that is another, of a table in the models
    kind, thing = cast("tuple[str, Any]", difference)[:2]
    table: object = {"remove_table": thing, "remove_index": getattr(thing, "table", None)}.get(kind)
    return getattr(table, "name", None) in tables


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


def _unknown(exc: CommandError) -> MigrationError:
    return MigrationError(
        f"{exc}. Nothing was changed. `ibex-db current` lists the revisions of the installed wheels; "
        "one that they lack is in another version of them"
    )


def applied(connection: Connection) -> set[str]:
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
    return revisions(applied(connection))


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
