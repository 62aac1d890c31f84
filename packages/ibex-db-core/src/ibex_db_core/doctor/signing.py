"""Signing: nobody but the owner reads the keys, with which every organization's signature is made."""

from collections.abc import Iterator

from ibex_db_core.base import SCHEMA
from ibex_db_core.doctor.catalog import Audit
from ibex_db_core.doctor.findings import Finding, finding
from ibex_db_core.policies import OWNER_ROLE, SIGNING_KEYS

__all__ = ["check_keys"]

_TABLE = f"{SCHEMA}.{SIGNING_KEYS}"

_STATE = """
    SELECT pg_get_userbyid(c.relowner)::text AS owner, c.relrowsecurity AS guarded, c.relforcerowsecurity AS forced,
           ARRAY(SELECT p.polname::text FROM pg_policy p WHERE p.polrelid = c.oid ORDER BY 1) AS policies
      FROM pg_class c WHERE c.oid = to_regclass(:table)
"""
_HELD = """
    SELECT CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(g.grantee)::text END AS grantee,
           string_agg(DISTINCT g.privilege_type, ', ') AS verbs
      FROM pg_class c,
           LATERAL (SELECT * FROM aclexplode(COALESCE(c.relacl, acldefault('r', c.relowner)))
                    UNION ALL
                    SELECT x.* FROM pg_attribute a, aclexplode(a.attacl) x WHERE a.attrelid = c.oid) g
     WHERE c.oid = to_regclass(:table) AND g.grantee <> c.relowner GROUP BY 1 ORDER BY 1
"""
_READER = "reads the keys and signs for every organization"


def check_keys(audit: Audit) -> Iterator[Finding]:
    """The table of keys is the owner's alone: no grant, no policy, row security on."""
    for row in audit.rows(_STATE, table=_TABLE):
        if row.owner != OWNER_ROLE:
            mend = f"ALTER TABLE {_TABLE} OWNER TO {OWNER_ROLE}"
            yield finding("signing-keys", _TABLE, f"{row.owner} {_READER}", mend)
        if not row.guarded:
            risk = f"one GRANT made by mistake is enough, and its holder {_READER}"
            yield finding("signing-keys", _TABLE, risk, f"ALTER TABLE {_TABLE} ENABLE ROW LEVEL SECURITY")
        if row.forced:
            risk = "signed_org(), which runs as the owner, finds no key: every service fails"
            yield finding("signing-keys", _TABLE, risk, f"ALTER TABLE {_TABLE} NO FORCE ROW LEVEL SECURITY")
        for policy in row.policies:
            name = audit.quote(policy)
            risk = f"with it, whoever may SELECT {_READER}"
            yield finding("signing-keys", f"{name} on {_TABLE}", risk, f"DROP POLICY {name} ON {_TABLE}")
    for row in audit.rows(_HELD, table=_TABLE):
        grantee = audit.quote(row.grantee)
        risk = f"it holds {row.verbs}: past row security, which one statement of the owner lifts, it {_READER}"
        yield finding("signing-keys", f"{_TABLE} to {grantee}", risk, f"REVOKE ALL ON {_TABLE} FROM {grantee} CASCADE")
