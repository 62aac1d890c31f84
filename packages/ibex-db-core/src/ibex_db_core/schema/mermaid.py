"""Entities as a Mermaid erDiagram."""

import re
from collections.abc import Iterable

from ibex_db_core.schema.entities import Attribute, Entity, Link


def mermaid(entities: Iterable[Entity]) -> str:
    """Return the text of an erDiagram, without a code fence.

    A link's label is the child's column.  ``|o``: set to NULL when the parent goes; ``||``: goes with it.
    """
    every = list(entities)
    lines = ["erDiagram"]
    lines += [f"    {_link(entity, link)}" for entity in every for link in entity.links]
    for entity in every:
        lines.append(f"    {entity.name} {{")
        lines += [f"        {_attribute(attribute)}" for attribute in entity.attributes]
        lines.append("    }")
    return "\n".join(lines) + "\n"


def _link(entity: Entity, link: Link) -> str:
    return f'{link.parent} {"|o" if link.optional else "||"}--o{{ {entity.name} : "{link.column}"'


def _attribute(attribute: Attribute) -> str:
    keys = ", ".join(key for key, true in (("PK", attribute.primary), ("FK", attribute.parent is not None)) if true)
    # Its grammar takes no comma and no blank in a type.
    kind = re.sub(r"[^\w()]", "-", attribute.type)
    remark = ' "may be NULL"' if attribute.nullable else ""
    return f"{kind} {attribute.name}{' ' + keys if keys else ''}{remark}"
