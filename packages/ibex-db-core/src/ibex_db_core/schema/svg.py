"""Entities as an SVG: one file, no fonts, no script, readable on light and on dark.

Colours are custom properties of the class ``ibex-schema``, which follow the
reader's system; a page that has a switch of its own sets them itself.
"""

from collections.abc import Iterable, Sequence
from html import escape

from ibex_db_core.schema.entities import Attribute, Entity, Link
from ibex_db_core.schema.layout import Box, Layout, Line, place

_ROW = 20.0
_HEAD = 30.0
_CHAR = 7.3  # of the widest common monospaced face at 12 px, so that no column runs into the next
_PAD = 10.0
_BADGE = 28.0
_MARGIN = 24.0
_LEGEND = 64.0
_LOOP = 16.0
_TURN = 6.0

_NOTES = (
    ("name? may be NULL. Every org_id is a key to organizations, drawn where it is the only one.", 33.0),
    ("Solid: goes with its parent. Dashed: is set to NULL. All other keys carry org_id too.", 50.0),
)

_WHEELS = ("core", "tenancy", "memory")
# One for each parent, in turn: on a light ground, and on a dark one.
_HUES = (
    ("#2563c9", "#7aa7ff"),
    ("#a0610f", "#e0a458"),
    ("#22784f", "#5cc08f"),
    ("#a3467f", "#e08bc0"),
    ("#6a50c4", "#a996f5"),
    ("#0f7a8a", "#4fc0d0"),
    ("#b0412f", "#ef8b7c"),
)


def _hues(ground: int) -> str:
    return "; ".join(f"--hue-{number}: {hue[ground]}" for number, hue in enumerate(_HUES))


_STYLE = f"""
.ibex-schema {{ --ground: #ffffff; --ink: #1f2430; --faint: #5d6678; --rule: #c9cfda; --stripe: #f4f6f9;
  --core: #e4e7ec; --tenancy: #d7e6fb; --memory: #d9f0e3; {_hues(0)}; background: var(--ground);
  font: 12px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
@media (prefers-color-scheme: dark) {{ .ibex-schema {{ --ground: #14171e; --ink: #e8ebf2; --faint: #9aa4b6;
  --rule: #3a4252; --stripe: #1b1f28; --core: #343b49; --tenancy: #1f3b63; --memory: #1d4a36; {_hues(1)}; }} }}
.ibex-schema text {{ fill: var(--ink); white-space: pre; }}
.ibex-schema .faint {{ fill: var(--faint); }}
.ibex-schema .name {{ font-weight: bold; font-size: 13px; }}
.ibex-schema .key {{ font-weight: bold; }}
.ibex-schema .box {{ fill: var(--ground); stroke: var(--rule); }}
.ibex-schema .stripe {{ fill: var(--stripe); }}
.ibex-schema .core {{ fill: var(--core); }}
.ibex-schema .tenancy {{ fill: var(--tenancy); }}
.ibex-schema .memory {{ fill: var(--memory); }}
.ibex-schema .link {{ fill: none; stroke-width: 1.5; }}
.ibex-schema .link:hover {{ stroke-width: 3; }}
.ibex-schema .optional path:first-of-type {{ stroke-dasharray: 5 4; }}
.ibex-schema .ring {{ fill: var(--ground); }}
"""


def svg(entities: Iterable[Entity]) -> str:
    """Return a whole SVG document; the same bytes for the same entities."""
    every = list(entities)
    layout = place([_box(entity) for entity in every], _lines(every))
    hues = {parent: f"var(--hue-{number % len(_HUES)})" for number, parent in enumerate(_parents(every))}
    width, height = layout.width + 2 * _MARGIN, layout.height + 2 * _MARGIN + _LEGEND
    size = f'viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" height="{_n(height)}"'
    wheels = ", ".join(wheel for wheel in _WHEELS if any(entity.wheel == wheel for entity in every))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="ibex-schema" role="img" {size}>',
            "<title>Tables of ibex-db and how they point at each other</title>",
            f"<desc>{len(every)} tables of the wheels {escape(wheels)}</desc>",
            f"<style>{_STYLE}</style>",
            *_legend(every),
            f'<g transform="translate({_n(_MARGIN)} {_n(_MARGIN + _LEGEND)})">',
            *_links(every, layout, hues),
            *(part for entity in every for part in _table(entity, layout.boxes[entity.name], hues)),
            "</g>",
            "</svg>\n",
        ]
    )


def _parents(entities: Sequence[Entity]) -> list[str]:
    pointed_at = {link.parent for entity in entities for link in entity.links}
    return [entity.name for entity in entities if entity.name in pointed_at]


def _lines(entities: Sequence[Entity]) -> list[Line]:
    return [
        Line(link.constraint, link.parent, entity.name)
        for entity in entities
        for link in entity.links
        if link.parent != entity.name
    ]


def _own(entity: Entity) -> list[Link]:
    return [link for link in entity.links if link.parent == entity.name]


# -- boxes


def _box(entity: Entity) -> Box:
    widest = max(len(_label(one)) + len(_kind(one)) for one in entity.attributes) + 3
    head = len(entity.name) * 1.1 + len(_remark(entity)) + 3
    width = 2 * _PAD + max(_BADGE + widest * _CHAR, head * _CHAR)
    return Box(entity.name, width + _LOOP * len(_own(entity)), _HEAD + _ROW * len(entity.attributes))


def _label(attribute: Attribute) -> str:
    return attribute.name + ("?" if attribute.nullable else "")


def _kind(attribute: Attribute) -> str:
    return f"→ {attribute.parent}" if attribute.parent else attribute.type


def _remark(entity: Entity) -> str:
    return ", ".join(entity.remarks)


def _table(entity: Entity, box: Box, hues: dict[str, str]) -> list[str]:
    width = box.width - _LOOP * len(_own(entity))
    wheel = entity.wheel if entity.wheel in _WHEELS else "core"
    right = _n(width - _PAD)
    parts = [
        f'<g transform="translate({_n(box.x)} {_n(box.y)})">',
        f'<rect class="box" width="{_n(width)}" height="{_n(box.height)}" rx="5"/>',
        f'<path class="{wheel}" d="{_cap(width)}"/>',
        f'<text class="name" x="{_n(_PAD)}" y="20">{escape(entity.name)}</text>',
    ]
    if entity.remarks:
        parts.append(f'<text class="faint" x="{right}" y="20" text-anchor="end">{escape(_remark(entity))}</text>')
    for number, attribute in enumerate(entity.attributes):
        top = _HEAD + number * _ROW
        if number % 2:
            parts.append(f'<rect class="stripe" x="1" y="{_n(top)}" width="{_n(width - 2)}" height="{_n(_ROW - 1)}"/>')
        line = _n(top + 14)
        badge = "PK" if attribute.primary else "FK" if attribute.parent else ""
        if badge:
            parts.append(f'<text class="faint" x="{_n(_PAD)}" y="{line}">{badge}</text>')
        key = ' class="key"' if attribute.primary else ""
        parts.append(f'<text{key} x="{_n(_PAD + _BADGE)}" y="{line}">{escape(_label(attribute))}</text>')
        hue = f' style="fill: {hues[attribute.parent]}"' if attribute.parent and attribute.parent in hues else ""
        said = escape(_kind(attribute))
        parts.append(f'<text class="faint"{hue} x="{right}" y="{line}" text-anchor="end">{said}</text>')
    return [*parts, "</g>"]


def _cap(width: float) -> str:
    """Return the outline of a box's head: two round corners, inside the box's rule."""
    right, bend = _n(width - 1), _n(width - 6)
    return f"M1 {_n(_HEAD)} V6 Q1 1 6 1 H{bend} Q{right} 1 {right} 6 V{_n(_HEAD)} Z"


# -- links


def _links(entities: Sequence[Entity], layout: Layout, hues: dict[str, str]) -> list[str]:
    routes = {line.name: line.points for line in layout.lines}
    parts = list[str]()
    for entity in entities:
        own = _own(entity)
        for link in entity.links:
            if link.parent == entity.name:
                place = own.index(link)
                points = _loop(entity, link, layout.boxes[entity.name], place, len(own))
                ends = _foot(*points[0], -1, 0) + _bar(*points[-1], 1, 0, optional=link.optional)
            else:
                points = routes[link.constraint]
                ends = _foot(*points[-1], 0, 1) + _bar(*points[0], 0, 1, optional=link.optional)
            kind = "link optional" if link.optional else "link"
            rule = "set to NULL" if link.optional else "goes"
            told = f"{link.constraint}: {entity.name}.{link.column} {rule} when its row of {link.parent} goes"
            parts.append(
                f'<g class="{kind}" style="stroke: {hues[link.parent]}"><title>{escape(told)}</title>'
                f'<path d="{_path(points)}"/>{ends}</g>'
            )
    return parts


def _loop(entity: Entity, link: Link, box: Box, place: int, loops: int) -> tuple[tuple[float, float], ...]:
    """Run a link from its column around the right side to the head of the same box."""
    row = next(number for number, one in enumerate(entity.attributes) if one.name == link.column)
    edge = box.x + box.width - _LOOP * loops
    out = edge + _LOOP * (place + 1)
    y, top = box.y + _HEAD + _ROW * row + _ROW / 2, box.y + 8 + 9 * (loops - 1 - place)
    return (edge, y), (out, y), (out, top), (edge, top)


def _path(points: Sequence[tuple[float, float]]) -> str:
    """Draw a line through right angles, with their corners rounded."""
    parts = [f"M{_n(points[0][0])} {_n(points[0][1])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        start, end = _toward(corner, before), _toward(corner, after)
        parts.append(f"L{_n(start[0])} {_n(start[1])} Q{_n(corner[0])} {_n(corner[1])} {_n(end[0])} {_n(end[1])}")
    parts.append(f"L{_n(points[-1][0])} {_n(points[-1][1])}")
    return " ".join(parts)


def _toward(corner: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    dx, dy = other[0] - corner[0], other[1] - corner[1]
    length = max(abs(dx), abs(dy))
    share = min(_TURN, length / 2) / length
    return corner[0] + dx * share, corner[1] + dy * share


def _foot(x: float, y: float, dx: int, dy: int) -> str:
    """Draw a crow's foot where a line reaches the many; (dx, dy) is the way into the box."""
    back = (x - 10 * dx, y - 10 * dy)
    toes = ((x + 5 * side * dy, y + 5 * side * dx) for side in (-1, 1))
    return "".join(f'<path d="M{_n(back[0])} {_n(back[1])} L{_n(toe[0])} {_n(toe[1])}"/>' for toe in toes)


def _bar(x: float, y: float, dx: int, dy: int, *, optional: bool) -> str:
    """Draw what stands where a line leaves the one: a bar, or a ring for none or one; (dx, dy) is the way out."""
    if optional:
        return f'<circle class="ring" cx="{_n(x + 7 * dx)}" cy="{_n(y + 7 * dy)}" r="3.5"/>'
    at = (x + 6 * dx, y + 6 * dy)
    return f'<path d="M{_n(at[0] - 5 * dy)} {_n(at[1] - 5 * dx)} L{_n(at[0] + 5 * dy)} {_n(at[1] + 5 * dx)}"/>'


# -- the rest


def _legend(entities: Sequence[Entity]) -> list[str]:
    parts, x = [f'<g transform="translate({_n(_MARGIN)} {_n(_MARGIN)})">'], 0.0
    for wheel in _WHEELS:
        if any(entity.wheel == wheel for entity in entities):
            name = f"ibex-db-{wheel}"
            parts.append(f'<rect class="{wheel}" x="{_n(x)}" y="0" width="14" height="14" rx="3"/>')
            parts.append(f'<text x="{_n(x + 20)}" y="11">{name}</text>')
            x += 20 + (len(name) + 3) * _CHAR
    parts += [f'<text class="faint" x="0" y="{_n(y)}">{line}</text>' for line, y in _NOTES]
    return [*parts, "</g>"]


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")
