"""What the models say in SQL: constraints and indexes as Postgres would be told to make them."""

from sqlalchemy import CheckConstraint, Constraint, Index, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import AddConstraint, CreateIndex
from sqlalchemy.sql.elements import ClauseElement

__all__ = ["add_constraint", "constraint_name", "constraints", "create_index", "predicate", "rule"]

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]


def constraints(table: Table) -> dict[str, Constraint]:
    """Return the constraints of a model's table by the names that the database knows."""
    return {name: constraint for constraint in table.constraints if (name := constraint_name(constraint)) is not None}


def constraint_name(constraint: Constraint) -> str | None:
    """Return the name after the naming convention; None for one that is never made."""
    return _DIALECT.identifier_preparer.format_constraint(constraint)


def add_constraint(constraint: Constraint) -> str:
    """Return the statement that adds it to its table."""
    # Isolated, it would be left out of every later CREATE TABLE.
    statement = AddConstraint(constraint, isolate_from_table=False).compile(dialect=_DIALECT)
    return " ".join(str(statement).split())


def rule(constraint: Constraint) -> str:
    """Return what it demands: of a CHECK the expression, of any other its definition."""
    if isinstance(constraint, CheckConstraint):
        return _expression(constraint.sqltext)
    return add_constraint(constraint).partition(f"ADD CONSTRAINT {constraint_name(constraint)} ")[2]


def create_index(index: Index) -> str:
    """Return the statement that makes it."""
    return " ".join(str(CreateIndex(index).compile(dialect=_DIALECT)).split())


def predicate(index: Index) -> str | None:
    """Return the condition of a partial index."""
    where = index.dialect_options["postgresql"].get("where")
    return _expression(where) if isinstance(where, ClauseElement) else None


def _expression(clause: ClauseElement) -> str:
    compiler = _DIALECT.statement_compiler(_DIALECT, None)
    return compiler.process(clause, include_table=False, literal_binds=True)
