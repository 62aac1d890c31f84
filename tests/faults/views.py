"""Views."""

from faults.fault import Fault

VIEWS = [
    Fault("view-not-invoker", "public.everybody", "CREATE VIEW public.everybody AS SELECT * FROM ibex_core.users"),
    Fault(
        "view-not-invoker",
        "public.counted",
        "CREATE VIEW public.everybody WITH (security_invoker) AS SELECT * FROM ibex_core.users;"
        "CREATE VIEW public.counted AS SELECT count(*) FROM public.everybody",
    ),
    Fault(
        "view-materialized",
        "ibex_core.everybody",
        "CREATE MATERIALIZED VIEW ibex_core.everybody AS SELECT * FROM ibex_core.users",
    ),
    Fault(
        "view-not-invoker",
        "public.keys",
        "CREATE VIEW public.keys AS SELECT * FROM ibex_core.signing_keys",
    ),
    Fault(
        "view-materialized",
        "tools.keys",
        "CREATE SCHEMA tools; CREATE MATERIALIZED VIEW tools.keys AS SELECT * FROM ibex_core.signing_keys",
    ),
    Fault(
        "view-not-invoker",
        "public.gone",
        "CREATE VIEW public.gone AS SELECT * FROM ibex_core.organization_erasures",
    ),
    Fault(
        "view-not-invoker",
        "public.books",
        "CREATE VIEW public.books AS SELECT * FROM ibex_core.alembic_version",
    ),
]
