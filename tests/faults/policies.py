"""Policies that are gone, changed, or one too many."""

from faults.fault import TENANT, Fault

POLICIES = [
    Fault("policy-missing", "agents_tenant on ibex_core.agents", "DROP POLICY agents_tenant ON ibex_core.agents"),
    Fault("policy-missing", "agents_platform on ibex_core.agents", "DROP POLICY agents_platform ON ibex_core.agents"),
    Fault("policy-floor-missing", "agents_floor on ibex_core.agents", "DROP POLICY agents_floor ON ibex_core.agents"),
    Fault(
        "policy-changed",
        "agents_tenant on ibex_core.agents",
        "ALTER POLICY agents_tenant ON ibex_core.agents USING (true)",
    ),
    Fault(
        "policy-changed",
        "agents_tenant on ibex_core.agents",
        "ALTER POLICY agents_tenant ON ibex_core.agents WITH CHECK (true)",
    ),
    Fault(
        "policy-changed",
        "agents_tenant on ibex_core.agents",
        "ALTER POLICY agents_tenant ON ibex_core.agents USING (org_id = current_setting('app.current_org_id')::uuid)",
    ),
    Fault(
        "policy-changed",
        "agents_tenant on ibex_core.agents",
        "ALTER POLICY agents_tenant ON ibex_core.agents "
        "USING (org_id = (SELECT NULLIF(current_setting('app.current_org_id', true), '')::uuid))",
    ),
    Fault(
        "policy-changed",
        "agents_floor on ibex_core.agents",
        f"ALTER POLICY agents_floor ON ibex_core.agents USING ({TENANT} OR current_user = 'ibex_app')",
    ),
    Fault(
        "policy-changed",
        "agents_platform on ibex_core.agents",
        "ALTER POLICY agents_platform ON ibex_core.agents TO PUBLIC",
    ),
    Fault(
        "policy-changed",
        "agents_tenant on ibex_core.agents",
        "DROP POLICY agents_tenant ON ibex_core.agents;"
        f"CREATE POLICY agents_tenant ON ibex_core.agents FOR SELECT TO ibex_app USING ({TENANT})",
    ),
    Fault(
        "policy-extra",
        "support on ibex_core.users",
        "CREATE POLICY support ON ibex_core.users TO ibex_app USING (true)",
    ),
    Fault(
        "policy-extra",
        "open on ibex_core.memories_p00",
        "CREATE POLICY open ON ibex_core.memories_p00 TO PUBLIC USING (true)",
    ),
    Fault(
        "signing-mixed",
        "agents_tenant on ibex_core.agents",
        f"ALTER POLICY agents_tenant ON ibex_core.agents USING (org_id = (SELECT {TENANT[9:]})) "
        f"WITH CHECK (org_id = (SELECT {TENANT[9:]}))",
    ),
    Fault(
        "policy-changed",
        "agents_floor on ibex_core.agents",
        "ALTER POLICY agents_floor ON ibex_core.agents USING (org_id = ibex_core.signed_org()) "
        "WITH CHECK (org_id = ibex_core.signed_org())",
    ),
    Fault(
        "policy-function",
        "agents_tenant on ibex_core.agents",
        "CREATE FUNCTION public.org() RETURNS uuid LANGUAGE sql IMMUTABLE AS "
        "$$SELECT NULLIF(current_setting('app.current_org_id', true), '')::uuid$$;"
        "ALTER POLICY agents_tenant ON ibex_core.agents USING (org_id = public.org())",
        frozenset({"policy-changed"}),
    ),
    Fault(
        "policy-function",
        "agents_tenant on ibex_core.agents",
        "CREATE FUNCTION public.org() RETURNS uuid LANGUAGE plpgsql STABLE AS "
        "$$BEGIN RETURN NULLIF(current_setting('app.current_org_id', true), '')::uuid; END$$;"
        "ALTER POLICY agents_tenant ON ibex_core.agents USING (org_id = public.org())",
        frozenset({"policy-changed"}),
    ),
]
