"""Signed tenants."""

from faults.fault import Fault

_KEY = "INSERT INTO ibex_core.signing_keys VALUES ('00000000', sha256('a') || sha256('b'), sha256('c') || sha256('d'))"
_KEYS = "ibex_core.signing_keys"
_SIGNED = "org_id = (SELECT ibex_core.signed_org())"

SIGNING = [
    Fault("signing-mixed", "agents_floor on ibex_core.agents", _KEY),
    Fault("signing-mixed", "agents_tenant on ibex_core.agents", _KEY),
    Fault("signing-mixed", "organizations_floor on ibex_core.organizations", _KEY),
    Fault(
        "signing-mixed",
        "ibex_core.memories_bm25(query text, agents uuid[], corpus_rows bigint, mean_length double precision, "
        "k1 double precision, b double precision)",
        _KEY,
    ),
    Fault(
        "signing-mixed",
        "agents_floor on ibex_core.agents",
        f"ALTER POLICY agents_floor ON ibex_core.agents USING ({_SIGNED}) WITH CHECK ({_SIGNED})",
    ),
    Fault(
        "policy-changed",
        "agents_floor on ibex_core.agents",
        f"ALTER POLICY agents_floor ON ibex_core.agents USING ({_SIGNED}) WITH CHECK (true)",
    ),
    Fault(
        "policy-function",
        "agents_tenant on ibex_core.agents",
        f"ALTER POLICY agents_tenant ON ibex_core.agents USING ({_SIGNED}) WITH CHECK ({_SIGNED})",
        frozenset({"policy-changed"}),
    ),
    Fault("signing-keys", f"{_KEYS} to ibex_app", "GRANT SELECT (inner_pad) ON ibex_core.signing_keys TO ibex_app"),
    Fault("signing-keys", f"{_KEYS} to PUBLIC", "GRANT SELECT ON ibex_core.signing_keys TO PUBLIC"),
    Fault("signing-keys", _KEYS, "ALTER TABLE ibex_core.signing_keys DISABLE ROW LEVEL SECURITY"),
    Fault("signing-keys", _KEYS, "ALTER TABLE ibex_core.signing_keys FORCE ROW LEVEL SECURITY"),
    Fault("signing-keys", _KEYS, "ALTER TABLE ibex_core.signing_keys OWNER TO CURRENT_USER"),
    Fault(
        "signing-keys",
        f"all_keys on {_KEYS}",
        "CREATE POLICY all_keys ON ibex_core.signing_keys USING (true)",
    ),
    Fault(
        "function-changed",
        "ibex_core.signed_org()",
        "CREATE OR REPLACE FUNCTION ibex_core.signed_org() RETURNS uuid LANGUAGE sql STABLE SECURITY DEFINER "
        "SET search_path = pg_catalog, pg_temp AS "
        "$$SELECT NULLIF(current_setting('app.current_org_id', true), '')::uuid$$",
    ),
    Fault(
        "login-mixes",
        "doctor_one in ibex_platform",
        "CREATE ROLE doctor_one LOGIN IN ROLE ibex_app; GRANT ibex_platform TO doctor_one WITH INHERIT FALSE;" + _KEY,
        frozenset({"signing-mixed"}),
    ),
]
