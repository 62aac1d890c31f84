"""Run the migrations of every installed wheel, over one connection, under one advisory lock."""

import asyncio
import io
import math
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from alembic import command
from alembic.autogenerate import produce_migrations
from alembic.config import Config
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ibex_db_core.base import SCHEMA, Base
from ibex_db_core.errors import InvalidInputError, MigrationError
from ibex_db_core.migrations import signing
from ibex_db_core.policies import SIGNING_KEYS
from ibex_db_core.signing import SigningKey

if TYPE_CHECKING:
    from alembic.runtime.environment import EnvironmentContext

T = TypeVar("T")

WHEELS_GROUP = "ibex_db.wheels"

# One number for "somebody migrates an ibex_core schema in this database".
# Session level, since every revision commits on its own.
_LOCK = 0x1BEC_DB01

# Alembic's `op` and `context` are one for the whole process: two databases that
# migrate at once would run each other's statements.
_ALEMBIC = threading.Lock()


@dataclass(frozen=True, slots=True)
class Revision:
    """One migration of one wheel.

    Attributes:
        id: the revision's id, for example ``memory_0001``.
        wheel: its branch label: core, tenancy or memory.
        message: the first line of its docstring.
        applied: the database is at it or past it.
    """

    id: str
    wheel: str
    message: str
    applied: bool


def wheels() -> dict[str, str]:
    """Return the installed wheels, branch label to package name, lower wheels first."""
    found = {point.name: point.value for point in entry_points(group=WHEELS_GROUP)}
    order = {"core": 0, "tenancy": 1, "memory": 2}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0], len(order)), item[0])))


def newest() -> dict[str, str]:
    """Return the newest revision of each installed wheel, branch label to revision; asks no database."""
    return {step.wheel: step.id for step in _revisions(())}  # oldest first, so the last one stays


def metadata() -> MetaData:
    """Return the tables of every installed wheel."""
    for point in entry_points(group=WHEELS_GROUP):
        point.load()
    return Base.metadata


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


class Migrator:
    """Moves one database between revisions.

    Args:
        engine: connects as a member of ibex_owner (the very first time: as a role
            that may create roles and the vector extension).
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def upgrade(self, revision: str = "heads") -> list[Revision]:
        """Bring the schema to a revision, by default to the newest of every installed wheel.

        Idempotent; safe to call from many processes at once: an advisory lock
        lets one migrate while the others wait and then find nothing to do.

        Returns:
            the revisions that this call applied, in order.

        Raises:
            MigrationError: a revision failed; those before it stay applied, its own changes are rolled back.
        """

        def run(connection: Connection) -> list[Revision]:
            # Asked first: IF NOT EXISTS would want CREATE on the database of a
            # later migrator, who is no more than a member of the owner role.
            if connection.scalar(text("SELECT to_regnamespace(:schema)"), {"schema": SCHEMA}) is None:
                connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
            # A data migration by the forced owner would update no row and say
            # nothing; this makes it an error.
            connection.execute(text("SET row_security = off"))
            connection.commit()
            before = _applied(connection)
            connection.rollback()  # as in configure_online
            self._command(connection, lambda config: command.upgrade(config, revision))
            after = _applied(connection)
            return [step for step in _revisions(after) if step.applied and step.id not in before]

        return await self._locked(run)

    async def downgrade(self, revision: str) -> None:
        """Take the schema back to a revision, for example ``memory@base``, ``memory@-1`` or ``base``.

        Raises:
            MigrationError: a step failed and was rolled back.
        """
        await self._locked(
            lambda connection: self._command(connection, lambda config: command.downgrade(config, revision))
        )

    async def current(self) -> list[Revision]:
        """Return every revision of the installed wheels, oldest first, each with whether it is applied."""
        async with self._engine.connect() as connection:
            return await connection.run_sync(steps)

    async def check(self) -> list[str]:
        """Return how the live schema differs from the models; an empty list means it does not.

        Alembic compares tables, columns and indexes; the doctor's checks of policies, grants,
        constraints, triggers, functions and views are told too, each with its code.
        """
        from ibex_db_core.doctor.audit import ISOLATION, examine  # the room above, which stands on this one

        def run(connection: Connection) -> list[str]:
            script, complaints = compared(connection, metadata())
            operations = script.upgrade_ops
            drift = [told(one) for one in operations.as_diffs()] if operations is not None else []
            isolation = examine(connection, checks=ISOLATION).findings
            return [*drift, *complaints, *(f"{found.object}: {found.risk} ({found.code})" for found in isolation)]

        async with self._engine.connect() as connection:
            return await connection.run_sync(run)

    async def sign(self, key: str) -> "signing.Signing":
        """Demand from every tenant transaction a signature made with this key, from now on; see decision 30.

        In one transaction, without a pause for services that have the key
        already.  Again with the same key: signs what is not signed yet.

        Args:
            key: 64 hexadecimal digits.

        Raises:
            ConfigurationError: no such key, or signing is on with another one.
            LockTimeoutError: the tables were never free together; nothing was changed.
            MigrationError: revision core_0002 is not applied.
        """
        checked = SigningKey(key)
        return await self._locked(lambda connection: signing.enable(connection, checked, metadata()))

    async def unsign(self) -> "signing.Signing":
        """Demand no signatures any more, and forget the keys.

        Raises:
            LockTimeoutError: the tables were never free together; nothing was changed.
            MigrationError: revision core_0002 is not applied.
        """
        return await self._locked(lambda connection: signing.disable(connection, metadata()))

    async def rotate(self, key: str, *, overlap: float = 86_400.0) -> "signing.Signing":
        """Take a new key; the one before it stays valid for a while, so that services can follow one by one.

        Args:
            key: 64 hexadecimal digits.
            overlap: seconds, 0 or more; 0 shuts the old key out at once.

        Raises:
            InvalidInputError: overlap is negative, or no finite number.
            ConfigurationError: no such key, signing is off, or this is the key in use.
            MigrationError: revision core_0002 is not applied.
        """
        checked = SigningKey(key)
        if not 0 <= overlap < math.inf:
            raise InvalidInputError("overlap", overlap, "must be a number of seconds, 0 or more")
        return await self._locked(lambda connection: signing.rotate(connection, checked, overlap))

    async def signing(self) -> "signing.Signing":
        """Return whether tenants must be signed, and which keys are valid; their ids only.

        Raises:
            MigrationError: revision core_0002 is not applied.
        """
        async with self._engine.connect() as connection:
            return await connection.run_sync(signing.status)

    @staticmethod
    def sql(revision: str = "heads") -> str:
        """Return the SQL of a full upgrade, without a database.

        Raises:
            MigrationError: there is no such revision, or a migration is running in this process.
        """
        output = io.StringIO()
        if not _ALEMBIC.acquire(blocking=False):
            raise MigrationError("a migration is running in this process: print its SQL before or after")
        try:
            with redirect_stdout(output):  # Alembic prints to both, by the option
                command.upgrade(_config(output), revision, sql=True)
        except CommandError as exc:
            raise _unknown(exc) from exc
        finally:
            _ALEMBIC.release()
        return output.getvalue()

    async def _locked(self, run: Callable[[Connection], T]) -> T:
        async with self._engine.connect() as connection:
            await connection.execute(text(f"SELECT pg_advisory_lock({_LOCK})"))
            await connection.commit()
            try:
                async with _alembic_to_itself():
                    return await connection.run_sync(run)
            finally:
                await connection.rollback()
                await connection.execute(text("RESET row_security"))
                await connection.execute(text(f"SELECT pg_advisory_unlock({_LOCK})"))
                await connection.commit()

    @staticmethod
    def _command(connection: Connection, run: Callable[[Config], object]) -> None:
        config = _config()
        config.attributes["connection"] = connection
        try:
            run(config)
        except CommandError as exc:
            raise _unknown(exc) from exc
        except Exception as exc:
            raise MigrationError(f"migration failed and was rolled back: {exc}") from exc


def _unknown(exc: CommandError) -> MigrationError:
    return MigrationError(
        f"{exc}. Nothing was changed. `ibex-db current` lists the revisions of the installed wheels; "
        "one that they lack is in another version of them"
    )


@asynccontextmanager
async def _alembic_to_itself() -> AsyncGenerator[None]:
    """Wait until no other migration runs in this process, on whichever loop or thread, and keep others waiting."""
    while not _ALEMBIC.acquire(blocking=False):  # noqa: ASYNC110 - an asyncio.Event belongs to one loop
        await asyncio.sleep(0.01)
    try:
        yield
    finally:
        _ALEMBIC.release()


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
    return _revisions(_applied(connection))


def strangers(connection: Connection) -> list[str]:
    """Return the revisions that the database is at and that no installed wheel knows."""
    script = ScriptDirectory.from_config(_config())
    context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
    return [head for head in context.get_current_heads() if not _known(script, head)]


def _known(script: ScriptDirectory, revision: str) -> bool:
    return any(step.revision == revision for step in script.walk_revisions())


def _revisions(applied: Iterable[str]) -> list[Revision]:
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
