"""Triggers."""

from faults.fault import Fault

TRIGGERS = [
    Fault(
        "trigger-missing",
        "agents_before_update on ibex_core.agents",
        "DROP TRIGGER agents_before_update ON ibex_core.agents",
    ),
    Fault(
        "trigger-missing",
        "memories_after_update on ibex_core.memories",
        "DROP TRIGGER memories_after_update ON ibex_core.memories",
    ),
    Fault(
        "trigger-disabled",
        "checkpoints_before_update on ibex_core.checkpoints",
        "ALTER TABLE ibex_core.checkpoints DISABLE TRIGGER checkpoints_before_update",
    ),
    Fault(
        "trigger-disabled",
        "memories_after_update on ibex_core.memories_p05",
        "ALTER TABLE ibex_core.memories_p05 DISABLE TRIGGER memories_after_update",
    ),
    Fault(
        "trigger-disabled",
        "memories_after_insert on ibex_core.memories",
        "ALTER TABLE ibex_core.memories ENABLE REPLICA TRIGGER memories_after_insert",
    ),
    Fault(
        "trigger-changed",
        "memories_after_update on ibex_core.memories",
        "CREATE OR REPLACE TRIGGER memories_after_update AFTER UPDATE ON ibex_core.memories FOR EACH ROW"
        " WHEN (NEW.content IS DISTINCT FROM OLD.content) EXECUTE FUNCTION ibex_core.memories_next_version()",
    ),
    Fault(
        "trigger-changed",
        "agents_before_update on ibex_core.agents",
        "CREATE OR REPLACE TRIGGER agents_before_update BEFORE UPDATE ON ibex_core.agents FOR EACH ROW"
        " EXECUTE FUNCTION ibex_core.touch()",
    ),
    Fault(
        "trigger-unknown",
        "copy on ibex_core.users",
        "CREATE TRIGGER copy AFTER INSERT ON ibex_core.users FOR EACH ROW EXECUTE FUNCTION ibex_core.keep_org()",
    ),
    Fault(
        "key-disabled",
        "ibex_core.tokens",
        "ALTER TABLE ibex_core.tokens DISABLE TRIGGER ALL",
        frozenset({"trigger-disabled"}),
    ),
]
