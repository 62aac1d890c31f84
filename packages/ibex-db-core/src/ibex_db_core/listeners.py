"""Who listens to SQLAlchemy's events beside us, counted for every statement, and so at little cost.

A session gets its collections of listeners when somebody first asks it for
them, which costs more than a unit of work may spend on a question whose answer
is nobody.  One that was never asked has only the listeners of its class.
"""
# As lending.py: of the inside of sqlalchemy.event; tests/test_lending.py tells when it changes.
# pyright: reportPrivateUsage=false

from operator import attrgetter
from typing import Any

__all__ = ["Events", "SessionEvents"]


class Events:
    """Some events of one kind of target.

    Args:
        names: two at least.
        ours: how many listeners are our own.
    """

    def __init__(self, *names: str, ours: int = 0) -> None:
        self._of = attrgetter(*names)
        self._ours = ours
        self._asked: tuple[Any, ...] = ()
        self._listeners: list[Any] = []

    def heard(self, target: Any) -> bool:
        """Tell whether anybody but us listens to one of them."""
        if (collections := self._of(target.dispatch)) != self._asked:  # of the engine that was asked last
            self._asked = collections
            # The lists themselves, which grow; a collection that had none is another object once it has one.
            self._listeners = [of for one in collections for of in (one.listeners, one.parent_listeners)]
        return sum(map(len, self._listeners)) != self._ours


class SessionEvents(Events):
    """Some events of sessions, each of which serves one unit of work."""

    def __init__(self, *names: str, ours: int = 0) -> None:
        super().__init__(*names, ours=ours)
        self._by_class: dict[Any, list[Any]] = {}

    def heard(self, target: Any) -> bool:
        """Tell whether anybody but us listens to one of them."""
        if "dispatch" in target.__dict__:
            return super().heard(target)
        kind = target.__class__
        if (listeners := self._by_class.get(kind)) is None:
            listeners = [one.parent_listeners for one in self._of(kind.dispatch._for_class(kind))]
            self._by_class[kind] = listeners
        return sum(map(len, listeners)) != self._ours
