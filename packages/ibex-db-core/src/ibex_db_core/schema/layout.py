"""Where the boxes of a diagram stand and how the lines between them run: layers, top to bottom.

Each box is one layer below the lowest of its parents.  A line that passes a
layer holds a place there, as if it were a thin box, so that it crosses none.
Order and places are found by a fixed number of sweeps over sorted lists: the
same boxes give the same picture, to the pixel.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

_GAP = 36.0  # between neighbours of one layer
_LINE_GAP = 14.0  # where one of the two is a passing line
_TRACK = 10.0  # between parallel lines in the space between two layers
_CLEAR = 26.0  # above the first and below the last of them: room for the lines' ends
_PORT = 20.0  # at most, between lines that end at the same side of one box
_SWEEPS = 24


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of the diagram; x and y are its upper left corner, found by place()."""

    name: str
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0


@dataclass(frozen=True, slots=True)
class Line:
    """A line from the bottom of a parent to the top of a child; its points are found by place()."""

    name: str
    parent: str
    child: str
    points: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes and lines, placed, and the size of the whole."""

    boxes: Mapping[str, Box]
    lines: Sequence[Line]
    width: float
    height: float


@dataclass(slots=True)
class _Node:
    """A box, or the place of a passing line, in its layer."""

    key: str
    width: float
    height: float
    passing: bool
    x: float = 0.0  # its middle
    above: list["_Node"] = field(default_factory=list["_Node"])
    below: list["_Node"] = field(default_factory=list["_Node"])


def place(boxes: Sequence[Box], lines: Sequence[Line]) -> Layout:
    """Return the boxes and lines with their places.

    Args:
        boxes: in any order; those without lines stand in the first layer.
        lines: without circles, and none from a box to itself.
    """
    if not boxes:
        return Layout({}, [], 0.0, 0.0)
    layers, chains = _layers(boxes, lines)
    _order(layers)
    for _ in range(_SWEEPS):
        for layer in (*layers, *reversed(layers)):
            _settle(layer)
    left = min(node.x - node.width / 2 for layer in layers for node in layer)
    for node in (node for layer in layers for node in layer):
        node.x -= left

    ends = _ends(chains)
    tracks = [_tracks(level, chains, ends) for level in range(len(layers))]
    tops, y = list[float](), 0.0
    for layer, track in zip(layers, tracks, strict=True):
        tops.append(y)
        y += max(node.height for node in layer) + 2 * _CLEAR + _TRACK * max(len(track) - 1, 0)
    placed = {
        node.key: Box(node.key, node.width, node.height, node.x - node.width / 2, top)
        for layer, top in zip(layers, tops, strict=True)
        for node in layer
        if not node.passing
    }
    turns = [
        {
            number: top + max(node.height for node in layer) + _CLEAR + _TRACK * place
            for place, number in enumerate(track)
        }
        for layer, top, track in zip(layers, tops, tracks, strict=True)
    ]
    routed = [
        replace(line, points=_route(chain, of_line, placed, [turn.get(number) for turn in turns]))
        for number, (line, chain, of_line) in enumerate(zip(lines, chains, ends, strict=True))
    ]
    right = max(node.x + node.width / 2 for layer in layers for node in layer)
    bottom = max(box.y + box.height for box in placed.values())
    return Layout(placed, routed, right, bottom)


@dataclass(frozen=True, slots=True)
class _Chain:
    """The nodes that a line visits, one a layer, and the layer of the first."""

    start: int
    nodes: tuple[_Node, ...]


def _layers(boxes: Sequence[Box], lines: Sequence[Line]) -> tuple[list[list[_Node]], list[_Chain]]:
    parents = {box.name: {line.parent for line in lines if line.child == box.name} for box in boxes}
    level: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in level:
            level[name] = max((depth(parent) + 1 for parent in sorted(parents[name])), default=0)
        return level[name]

    layers: list[list[_Node]] = [[] for _ in range(max(depth(box.name) for box in boxes) + 1)]
    nodes = {box.name: _Node(box.name, box.width, box.height, passing=False) for box in boxes}
    for box in boxes:
        layers[level[box.name]].append(nodes[box.name])
    chains = list[_Chain]()
    for number, line in enumerate(lines):
        chain = [nodes[line.parent]]
        for layer in layers[level[line.parent] + 1 : level[line.child]]:
            layer.append(passing := _Node(f"{number}:{line.name}", 0.0, 0.0, passing=True))
            chain.append(passing)
        chain.append(nodes[line.child])
        for upper, lower in pairwise(chain):
            upper.below.append(lower)
            lower.above.append(upper)
        chains.append(_Chain(level[line.parent], tuple(chain)))
    return layers, chains


def _order(layers: list[list[_Node]]) -> None:
    """Put each layer in the order that crosses the fewest lines, of those that the sweeps come by."""
    best, fewest = [list(layer) for layer in layers], _crossings(layers)
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for layer in layers if down else reversed(layers):
            places = {id(node): place for near in layers for place, node in enumerate(near)}

            middles = [_middle(node, node.above if down else node.below, places) for node in layer]
            layer[:] = [node for _, _, node in sorted(zip(middles, range(len(layer)), layer, strict=True))]
        if (crossed := _crossings(layers)) < fewest:
            best, fewest = [list(layer) for layer in layers], crossed
    for layer, order in zip(layers, best, strict=True):
        layer[:] = order
    for layer in layers:
        right = 0.0
        for node, before in zip(layer, [None, *layer], strict=False):
            right += _distance(before, node) if before else 0.0
            node.x = right


def _middle(node: _Node, near: Sequence[_Node], places: Mapping[int, int]) -> float:
    return sum(places[id(other)] for other in near) / len(near) if near else places[id(node)]


def _crossings(layers: list[list[_Node]]) -> int:
    crossed = 0
    for upper, lower in pairwise(layers):
        places = {id(node): place for place, node in enumerate(lower)}
        ends = [sorted(places[id(below)] for below in node.below) for node in upper]
        flat = [end for group in ends for end in group]
        crossed += sum(one > other for place, one in enumerate(flat) for other in flat[place + 1 :])
    return crossed


def _distance(left: _Node, right: _Node) -> float:
    return (left.width + right.width) / 2 + (_LINE_GAP if left.passing or right.passing else _GAP)


def _settle(layer: list[_Node]) -> None:
    """Move each node to the middle of its neighbours, as far as the order and the distances let it.

    Least squares under an order is isotonic regression: neighbours that want
    to pass each other are pooled, and stand as one at their mean.
    """
    offset = 0.0
    pools = list[tuple[float, float, int]]()  # sum of wishes, weight, nodes
    offsets = list[float]()
    for node, before in zip(layer, [None, *layer], strict=False):
        offset += _distance(before, node) if before else 0.0
        offsets.append(offset)
        near = [*node.above, *node.below]
        weight = 4.0 if node.passing else 1.0 if near else 0.01  # a wandering line is worse than a box off centre
        near = near or [other for other in layer if other is not node] or [node]  # a box alone keeps company
        wish = sum(other.x for other in near) / len(near) - offset
        pools.append((wish * weight, weight, 1))
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] > pools[-1][0] / pools[-1][1]:
            last, before_last = pools.pop(), pools.pop()
            pools.append((last[0] + before_last[0], last[1] + before_last[1], last[2] + before_last[2]))
    places = iter(offsets)
    nodes = iter(layer)
    for total, weight, count in pools:
        for _ in range(count):
            next(nodes).x = total / weight + next(places)


def _ends(chains: Sequence[_Chain]) -> list[tuple[float, float]]:
    """Return where each line leaves its parent and reaches its child: spread along the side, in the order they come."""
    found = [[0.0, 0.0] for _ in chains]
    for side in (0, 1):
        of_box: dict[str, list[int]] = {}
        for number, chain in enumerate(chains):
            of_box.setdefault(chain.nodes[-side].key, []).append(number)
        for numbers in of_box.values():
            box = chains[numbers[0]].nodes[-side]
            numbers.sort(key=lambda number: (chains[number].nodes[-2 if side else 1].x, number))
            step = min(_PORT, box.width / (len(numbers) + 1))
            for place, number in enumerate(numbers):
                found[number][side] = box.x + (place - (len(numbers) - 1) / 2) * step
    return [_nearly_straight(chain, start, end) for (start, end), chain in zip(found, chains, strict=True)]


def _nearly_straight(chain: _Chain, start: float, end: float) -> tuple[float, float]:
    """Let a line that would only just turn go straight: its end gives way by less than half the way to the next."""
    short = chain.nodes[1] is chain.nodes[-1]
    return (start, start) if short and abs(start - end) < _PORT / 2 else (start, end)


def _crossing(level: int, chain: _Chain, ends: tuple[float, float]) -> tuple[float, float] | None:
    """Return where a line leaves a layer and where it enters the next; None: it is not between the two."""
    place = level - chain.start
    if not 0 <= place < len(chain.nodes) - 1:
        return None
    start = ends[0] if place == 0 else chain.nodes[place].x
    end = ends[1] if place == len(chain.nodes) - 2 else chain.nodes[place + 1].x
    return start, end


def _tracks(level: int, chains: Sequence[_Chain], ends: Sequence[tuple[float, float]]) -> list[int]:
    """Return the lines that turn below a layer, the topmost turn first.

    One that goes right turns before those from its left do, and one that goes
    left before those from its right: so none runs along another.
    """
    turning = {
        number: crossing
        for number, chain in enumerate(chains)
        if (crossing := _crossing(level, chain, ends[number])) and abs(crossing[0] - crossing[1]) >= 1
    }
    rightward = sorted((number for number, (x, end) in turning.items() if end > x), key=lambda n: (-turning[n][0], n))
    leftward = sorted((number for number, (x, end) in turning.items() if end < x), key=lambda n: (turning[n][0], n))
    return [*rightward, *leftward]


def _route(
    chain: _Chain, ends: tuple[float, float], placed: Mapping[str, Box], turns: Sequence[float | None]
) -> tuple[tuple[float, float], ...]:
    """Return a line's corners; turns: at which height it turns below each layer, None where it does not."""
    parent, child = placed[chain.nodes[0].key], placed[chain.nodes[-1].key]
    points = [(ends[0], parent.y + parent.height)]
    for level, y in enumerate(turns):
        if y is not None and (crossing := _crossing(level, chain, ends)):
            points += [(crossing[0], y), (crossing[1], y)]
    points.append((ends[1], child.y))
    return tuple(_straightened(points))


def _straightened(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Leave out nothing but what a straight line does not need."""
    kept = list[tuple[float, float]]()
    for point in points:
        if len(kept) > 1 and kept[-2][0] == kept[-1][0] == point[0]:
            kept.pop()
        kept.append(point)
    return kept
