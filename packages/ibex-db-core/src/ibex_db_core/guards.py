"""What stands watch over a table beside its own policies: triggers, functions, further policies, storage.

Migrations make these; a model declares them once more, as they are meant to be
today, in ``__guards__``.  The doctor compares a live database with that::

    class Memory(OrgScoped, Base):
        __guards__ = Guards(triggers=(Trigger("memories_after_insert", "AFTER INSERT ON ..."),), fillfactor=70)
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

SCHEMA = "ibex_core"


@dataclass(frozen=True, slots=True)
class Policy:
    """One row-level security policy.

    Attributes:
        role: the one role that it is for.
        using: which rows are seen; also which may be written, where the command writes.
        command: ALL, SELECT, INSERT, UPDATE or DELETE.
        permissive: False makes it a floor that every row must stand on.
    """

    name: str
    role: str
    using: str
    command: str = "ALL"
    permissive: bool = True

    def create(self, table: str) -> str:
        """Return the statement that makes it; table is qualified."""
        kind = "PERMISSIVE" if self.permissive else "RESTRICTIVE"
        rule = f"USING ({self.using})" if self.command in {"ALL", "SELECT", "UPDATE", "DELETE"} else ""
        check = f"WITH CHECK ({self.using})" if self.command in {"ALL", "INSERT", "UPDATE"} else ""
        words = (f"CREATE POLICY {self.name} ON {table} AS {kind} FOR {self.command} TO {self.role}", rule, check)
        return " ".join(word for word in words if word)


@dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger.

    Attributes:
        rest: the statement from behind the trigger's name: ``BEFORE UPDATE ON ibex_core.users FOR EACH ROW ...``.
    """

    name: str
    rest: str

    def create(self) -> str:
        """Return the statement that makes it."""
        return f"CREATE TRIGGER {self.name} {self.rest}"


@dataclass(frozen=True, slots=True)
class Function:
    """One function of ours.

    Attributes:
        body: what is between the dollar quotes.
        arguments: as pg_get_function_identity_arguments() says them: ``query text, k1 double precision``.
        result: as pg_get_function_result() says it: ``TABLE(memory_id uuid, score double precision)``.
        volatility: VOLATILE, STABLE or IMMUTABLE.
        options: others for the planner, for example ``PARALLEL SAFE ROWS 1000``; not compared.
        definer: the role whose rights it runs with, and who owns it; None: the caller's rights, owned by ibex_owner.
        callers: the roles that may execute a definer's function.
        settings: its own, for example ``{"search_path": "pg_catalog, pg_temp"}``; a definer's has a search_path.
    """

    name: str
    body: str
    arguments: str = ""
    result: str = "trigger"
    language: str = "plpgsql"
    volatility: str = "VOLATILE"
    options: str = ""
    definer: str | None = None
    callers: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    schema: str = SCHEMA

    @property
    def signature(self) -> str:
        """The qualified name with its arguments."""
        return f"{self.schema}.{self.name}({self.arguments})"

    def create(self) -> str:
        """Return the statement that makes it, or puts it right."""
        settings = "".join(f" SET {name} = {value}" for name, value in self.settings.items())
        security = (f" {self.options}" if self.options else "") + (" SECURITY DEFINER" if self.definer else "")
        return (
            f"CREATE OR REPLACE FUNCTION {self.signature} RETURNS {self.result} "
            f"LANGUAGE {self.language} {self.volatility}{security}{settings} AS $${self.body}$$"
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """One privilege that a role has beside those that every tenant table gives.

    Attributes:
        columns: those it is limited to; none: the whole table.
    """

    role: str
    privilege: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Copying:
    """A copy that a procedure of ours keeps beside the table for a while; the doctor tells what belongs to it as one.

    Attributes:
        code: of the finding that is told in place of those for each object.
        copy: its name, in the table's schema; closed to everybody, and partitioned as the table is.
        trigger: on the table, which keeps the copy in step.
        function: what that trigger calls, of the table's columns: quoted, in their order, without generated ones.
        policy: on the table, by which the owner sees what it copies.
        risk: what goes on; ``{partitions}`` stands for the copy's number of them.
        remedy: the commands that end it, one for each line.
    """

    code: str
    copy: str
    trigger: Trigger
    function: Callable[[Sequence[str]], Function]
    policy: Policy
    risk: str
    remedy: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Guards:
    """All that a table has beside what policies.secure() makes.

    Attributes:
        fillfactor: of the table, or of each of its partitions.
        storage: column to PLAIN, MAIN, EXTERNAL or EXTENDED, where it is not the type's own.
        copying: what a procedure puts beside the table for as long as it runs.
        sharded: the functions as they are in a distributed database, in place of those of the same names.
    """

    triggers: tuple[Trigger, ...] = ()
    functions: tuple[Function, ...] = ()
    policies: tuple[Policy, ...] = ()
    grants: tuple[Grant, ...] = ()
    fillfactor: int = 100
    storage: Mapping[str, str] = field(default_factory=dict[str, str])
    copying: Copying | None = None
    sharded: tuple[Function, ...] = ()
