"""The tables of the installed wheels, told as a diagram or as SQL; needs no database.

entities(models)     what a diagram shows of them: tables, columns, links
mermaid(entities)    an erDiagram, for pages that render Mermaid
svg(entities)        the same, drawn: no Graphviz, no fonts, no script
ddl(models)          the statements that make them as they are today, policies included
"""

from ibex_db_core.schema.ddl import ddl
from ibex_db_core.schema.entities import Attribute, Entity, Link, entities
from ibex_db_core.schema.mermaid import mermaid
from ibex_db_core.schema.svg import svg

__all__ = ["Attribute", "Entity", "Link", "ddl", "entities", "mermaid", "svg"]
