# pglast gives no attribute of a node a type, and every one may be None.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportOptionalIterable=false, reportOptionalSubscript=false, reportGeneralTypeIssues=false
"""Which reads and writes of a statement are not bound to one organization, by Postgres's own parser.

A reference to a tenant table is bound where the conditions that hold for every one of its rows fix its org_id: to a
value, or to the org_id of another reference that is bound.  The conditions are the AND of WHERE and of the joins'
ON; those of an outer join hold only for the side that it may leave empty.  A sub-select may lean on what is bound
around it; what a sub-select in FROM returns as org_id is bound where it is bound inside, and of what a CTE returns
nothing is: Citus may make a result of its own of that, and a join with it then asks every shard.  Each SELECT, UPDATE,
DELETE and INSERT is looked at on its own: every arm of a UNION, of a recursion and of a WITH.

Anything that this does not understand counts as not bound: a sharded engine would not understand it either.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pglast import ast, parse_sql
from pglast.enums import A_Expr_Kind, BoolExprType, JoinType, SetOperation

SCHEMA = "ibex_core"
KEY = "org_id"

IsOrg = Callable[[int], bool]
"""Tells whether the parameter of this number is the organization's id."""

Column = tuple[str, str]
"""Of what is named in FROM, and the column's name."""

_VALUE: Column = ("", "")
"""Stands for the organization's id itself."""


@dataclass(frozen=True)
class Loose:
    """One reference to a tenant table that nothing binds to an organization.

    Attributes:
        table: its name.
        alias: how the statement calls it.
        verb: what is done with it.
    """

    table: str
    alias: str
    verb: str

    def __str__(self) -> str:
        return f"{self.verb} {self.table}{f' AS {self.alias}' if self.alias != self.table else ''}"


@dataclass
class Scope:
    """One level of a query: what is in FROM, and which columns are equal there.

    Attributes:
        tables: alias to table, of tenant tables.
        names: every alias of this level, each with whether its org_id is bound already.
        equal: columns that are equal.
        later: what is in FROM, to be looked at when the conditions are known.
        leads: of an outer join: where the first is bound, the second is.
        outer: the levels around it.
        ctes: the CTEs in sight, each with whether its org_id is bound.
    """

    ctes: Mapping[str, bool]
    outer: "Scope | None" = None
    tables: dict[str, str] = field(default_factory=dict[str, str])
    names: dict[str, bool] = field(default_factory=dict[str, bool])
    equal: list[tuple[Column, Column]] = field(default_factory=list[tuple[Column, Column]])
    leads: list[tuple[Column, Column]] = field(default_factory=list[tuple[Column, Column]])
    later: list[Any] = field(default_factory=list[Any])

    def bound(self) -> set[Column]:
        """Return the columns that are equal to the organization's id."""
        found = {_VALUE} | {(name, KEY) for name, inside in self.names.items() if inside}
        found |= self.outer.bound() - {_VALUE} if self.outer is not None else set()
        # An alias of this level hides the same one around it.
        found -= {column for column in found if column[0] in self.names and not self.names[column[0]]}
        while True:
            more = {b for a, b in (*self.equal, *self.leads) if a in found} | {a for a, b in self.equal if b in found}
            if more <= found:
                return found
            found |= more


class Statement:
    """One statement, taken apart.

    Args:
        sql: with parameters as $1.
        tenant_tables: names of the tables whose rows belong to organizations, without schema.
        is_org: tells whether a parameter is the organization's id.
    """

    def __init__(self, sql: str, tenant_tables: frozenset[str], is_org: IsOrg) -> None:
        self._tenant_tables = tenant_tables
        self._is_org = is_org
        self.loose: list[Loose] = []
        self.references = 0
        for raw in parse_sql(sql):
            self._any(raw.stmt, {}, None)

    # -- statements

    def _any(self, node: Any, ctes: Mapping[str, bool], outer: Scope | None) -> bool:
        """Look at a statement, and tell whether the org_id that it returns is bound."""
        match node:
            case ast.SelectStmt():
                return self._select(node, ctes, outer)
            case ast.InsertStmt():
                return self._insert(node, ctes, outer)
            case ast.UpdateStmt() | ast.DeleteStmt():
                return self._change(node, ctes, outer)
            case ast.ExplainStmt():
                return self._any(node.query, ctes, outer)
            case _:
                return False

    def _with(self, clause: Any, ctes: Mapping[str, bool], outer: Scope | None) -> Mapping[str, bool]:
        found = dict(ctes)
        for cte in clause.ctes if clause is not None else ():
            if clause.recursive:
                found[cte.ctename] = False  # what the recursion reads of itself is not bound by itself
            found[cte.ctename] = self._any(cte.ctequery, found, outer)
        return found

    def _select(self, node: Any, ctes: Mapping[str, bool], outer: Scope | None) -> bool:
        ctes = self._with(node.withClause, ctes, outer)
        if node.op != SetOperation.SETOP_NONE:
            arms = [self._select(arm, ctes, outer) for arm in (node.larg, node.rarg)]
            return all(arms)
        scope = Scope(ctes, outer)
        for item in node.fromClause or ():
            self._from(item, scope, "SELECT")
        self._conditions(node.whereClause, scope)
        self._judge(scope, "SELECT")
        rest = [node.targetList, node.whereClause, node.havingClause, node.groupClause, node.sortClause]
        self._inside([*rest, node.limitCount, node.limitOffset, node.valuesLists, node.windowClause], scope)
        return self._returned(node.targetList, scope)

    def _change(self, node: Any, ctes: Mapping[str, bool], outer: Scope | None) -> bool:
        ctes = self._with(node.withClause, ctes, outer)
        verb = "UPDATE" if isinstance(node, ast.UpdateStmt) else "DELETE"
        scope = Scope(ctes, outer)
        self._from(node.relation, scope, verb)
        target = next(iter(scope.tables), None)
        for item in (node.fromClause if isinstance(node, ast.UpdateStmt) else node.usingClause) or ():
            self._from(item, scope, "SELECT")
        self._conditions(node.whereClause, scope)
        self._judge(scope, "SELECT", {target: verb} if target is not None else {})
        targets = node.targetList if isinstance(node, ast.UpdateStmt) else None
        self._inside([targets, node.whereClause, node.returningList], scope)
        return self._returned(node.returningList, scope)

    def _insert(self, node: Any, ctes: Mapping[str, bool], outer: Scope | None) -> bool:
        ctes = self._with(node.withClause, ctes, outer)
        table = node.relation.relname
        source = node.selectStmt
        mine = self._is_tenants(node.relation)
        place = next((at for at, column in enumerate(node.cols or ()) if column.name == KEY), None)
        bound = source is not None and place is not None and self._gives(source, place, ctes, outer)
        if mine and not bound:
            self.loose.append(Loose(table, (node.relation.alias.aliasname if node.relation.alias else table), "INSERT"))
        scope = Scope(ctes, outer)
        scope.names[node.relation.alias.aliasname if node.relation.alias else table] = bound
        conflict = node.onConflictClause
        if conflict is not None:
            scope.names["excluded"] = bound
            self._inside([conflict.targetList, conflict.whereClause], scope)
        self._inside([node.returningList], scope)
        return self._returned(node.returningList, scope)

    def _gives(self, source: Any, place: int, ctes: Mapping[str, bool], outer: Scope | None) -> bool:
        """Look at what is inserted, and tell whether the value at this place is always the organization's id."""
        if source.valuesLists:
            self._select(source, ctes, outer)
            scope = Scope(ctes, outer)
            return all(self._column(row[place], scope) == _VALUE for row in source.valuesLists)
        inside = self._with(source.withClause, ctes, outer)
        if source.op != SetOperation.SETOP_NONE:
            arms = [self._gives(arm, place, inside, outer) for arm in (source.larg, source.rarg)]
            return all(arms)  # of both, so that both are looked at
        self._select(source, ctes, outer)
        # Only to resolve the columns: what is loose in here has been told by now.
        quiet = Statement.__new__(Statement)
        quiet._tenant_tables, quiet._is_org, quiet.loose, quiet.references = self._tenant_tables, self._is_org, [], 0
        scope = Scope(inside, outer)
        for item in source.fromClause or ():
            quiet._from(item, scope, "SELECT")
        quiet._conditions(source.whereClause, scope)
        return self._column(source.targetList[place].val, scope) in scope.bound()

    # -- FROM

    def _from(self, item: Any, scope: Scope, verb: str) -> None:
        match item:
            case ast.RangeVar():
                alias = item.alias.aliasname if item.alias is not None else item.relname
                if self._is_tenants(item):
                    scope.tables[alias] = item.relname
                    scope.names[alias] = False
                else:
                    scope.names[alias] = False  # of a CTE: see above
            case ast.JoinExpr():
                self._join(item, scope, verb)
            case ast.RangeSubselect():
                scope.names[item.alias.aliasname] = False
                if item.lateral:  # sees its neighbours, and what WHERE says of them
                    scope.later.append(item)
                else:
                    scope.names[item.alias.aliasname] = self._any(item.subquery, scope.ctes, scope.outer)
            case ast.RangeFunction():
                if item.alias is not None:
                    scope.names[item.alias.aliasname] = False
                scope.later.append(item.functions)
            case _:
                raise NotImplementedError(f"in FROM: {type(item).__name__}")

    def _join(self, item: Any, scope: Scope, verb: str) -> None:
        before = set(scope.names)
        self._from(item.larg, scope, verb)
        left = set(scope.names) - before
        self._from(item.rarg, scope, verb)
        right = set(scope.names) - before - left
        if item.isNatural:
            raise NotImplementedError("NATURAL JOIN")
        pairs: list[tuple[Column, Column]] = []
        for column in item.usingClause or ():
            if column.sval == KEY:
                pairs += [((a, KEY), (b, KEY)) for a in left for b in right if self._has_key(scope, a, b)]
        pairs += self._pairs(item.quals, scope)
        # What ON says of the side that is kept in full holds for none of its rows.
        kept = {
            JoinType.JOIN_INNER: set[str](),
            JoinType.JOIN_LEFT: left,
            JoinType.JOIN_RIGHT: right,
            JoinType.JOIN_FULL: left | right,
        }[item.jointype]
        for a, b in pairs:
            if a[0] not in kept and b[0] not in kept:
                scope.equal.append((a, b))
            elif a[0] not in kept or b[0] not in kept:  # the kept side binds the other, never the other way round
                scope.leads.append((a, b) if a[0] in kept else (b, a))
        scope.later.append(item.quals)

    @staticmethod
    def _has_key(scope: Scope, *aliases: str) -> bool:
        return all(alias in scope.tables or scope.names[alias] for alias in aliases)

    # -- conditions

    def _conditions(self, node: Any, scope: Scope) -> None:
        scope.equal += self._pairs(node, scope)

    def _pairs(self, node: Any, scope: Scope) -> list[tuple[Column, Column]]:
        """Return the equalities that a condition is an AND of."""
        match node:
            case ast.BoolExpr() if node.boolop == BoolExprType.AND_EXPR:
                return [pair for one in node.args for pair in self._pairs(one, scope)]
            case ast.A_Expr() if node.kind == A_Expr_Kind.AEXPR_OP and node.name[-1].sval == "=":
                if isinstance(node.lexpr, ast.RowExpr) and isinstance(node.rexpr, ast.RowExpr):
                    sides: list[Any] = list(zip(node.lexpr.args, node.rexpr.args, strict=True))
                else:
                    sides = [(node.lexpr, node.rexpr)]
                columns = [(self._column(a, scope), self._column(b, scope)) for a, b in sides]
                return [(a, b) for a, b in columns if a is not None and b is not None]
            case _:
                return []

    def _column(self, node: Any, scope: Scope) -> Column | None:
        """Return the column that an expression is, or that it is the organization's id; None: something else."""
        match node:
            case ast.TypeCast():
                return self._column(node.arg, scope)
            case ast.ParamRef():
                return _VALUE if self._is_org(node.number) else None
            case ast.ColumnRef():
                names = [str(part.sval) for part in node.fields if isinstance(part, ast.String)]
                if len(names) != len(node.fields):
                    return None
                if len(names) > 1:
                    return (names[-2], names[-1])
                return self._unqualified(names[0], scope)
            case _:
                return None

    def _unqualified(self, name: str, scope: Scope) -> Column | None:
        if name != KEY:
            return None
        level: Scope | None = scope
        while level is not None:
            having = [alias for alias, bound in level.names.items() if alias in level.tables or bound]
            if len(having) == 1:
                return (having[0], KEY)
            if having:
                return None
            level = level.outer
        return None

    # -- what it comes to

    def _judge(self, scope: Scope, verb: str, verbs: Mapping[str, str] | None = None) -> None:
        for item in scope.later:
            if isinstance(item, ast.RangeSubselect):
                scope.names[item.alias.aliasname] = self._any(item.subquery, scope.ctes, scope)
            else:
                self._inside([item], scope)
        bound = scope.bound()
        for alias, table in scope.tables.items():
            if (alias, KEY) in bound:
                scope.names[alias] = True
            else:
                self.loose.append(Loose(table, alias, (verbs or {}).get(alias, verb)))

    def _returned(self, targets: Sequence[Any] | None, scope: Scope) -> bool:
        bound = scope.bound()
        for target in targets or ():
            column = self._column(target.val, scope)
            if (target.name or (column[1] if column is not None else None)) == KEY:
                return column in bound
            if isinstance(target.val, ast.ColumnRef) and isinstance(target.val.fields[-1], ast.A_Star):
                having = [name for name in scope.names if name in scope.tables or scope.names[name]]
                return len(having) == 1 and scope.names[having[0]]
        return False

    def _inside(self, nodes: Sequence[Any], scope: Scope) -> None:
        """Look at the sub-selects of expressions."""
        for node in nodes:
            if isinstance(node, (list, tuple)):
                self._inside(node, scope)
            elif isinstance(node, ast.SubLink):
                self._any(node.subselect, scope.ctes, scope)
                self._inside([node.testexpr], scope)
            elif isinstance(node, ast.Node):
                self._inside([getattr(node, name) for name in node], scope)

    def _is_tenants(self, relation: Any) -> bool:
        mine = relation.schemaname == SCHEMA and relation.relname in self._tenant_tables
        self.references += mine
        return mine
