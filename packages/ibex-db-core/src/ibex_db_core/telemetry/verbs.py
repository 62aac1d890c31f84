"""Repositories whose verbs are watched: a subclass of each, made when the first of them works in a watched session.

An unwatched repository is what its source says, call for call: what is off
costs nothing.
"""

import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import wraps
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from ibex_db_core.tenant import ScopedSession, watch_of

if TYPE_CHECKING:
    from ibex_db_core.scoped import Check, Scoped
    from ibex_db_core.telemetry.watch import Watch

__all__ = ["watched"]

_made: "WeakKeyDictionary[type[Scoped[Any]], type[Scoped[Any]]]" = WeakKeyDictionary()


# On a class that is watched already.
_MARK = "_ibex_watched"


def watched(cls: "type[Scoped[Any]]") -> "type[Scoped[Any]]":
    """Return the class with every public coroutine and async generator watched; the same one each time."""
    found = cls if hasattr(cls, _MARK) else _made.get(cls)
    if found is None:
        wrapped = {name: _wrapped(name, function, _checks_of(cls)) for name, function in _verbs(cls)}
        named = {_MARK: True, "__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
        found = _made[cls] = type(cls.__name__, (cls,), {**named, **wrapped})
    return found


def _checks_of(cls: "type[Scoped[Any]]") -> "Mapping[str, Check]":
    return cast("Mapping[str, Check]", inspect.getattr_static(cls, "_checks"))


def _verbs(cls: type) -> list[tuple[str, Callable[..., Any]]]:
    return [
        (name, function)
        for name, function in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_") and (inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function))
    ]


def _wrapped(name: str, function: Callable[..., Any], checks: "Mapping[str, Check]") -> Callable[..., Any]:
    parameters = inspect.signature(function).parameters
    limit = cast("int | None", parameters["limit"].default) if "limit" in parameters else None

    if inspect.isasyncgenfunction(function):
        generate = cast("Callable[..., AsyncGenerator[object]]", function)

        @wraps(function)
        async def watched_generator(self: "Scoped[Any]", *args: object, **kwargs: object) -> AsyncGenerator[object]:
            # Not made the current span: between two rows it is the caller's code that runs.
            with _watch(self).call(self, name, limit, kwargs, current=False) as call:
                async with aclosing(generate(self, *args, **kwargs)) as items:
                    async for item in items:
                        call.rows += 1
                        yield item

        return watched_generator

    run = cast("Callable[..., Awaitable[object]]", function)

    @wraps(function)
    async def watched_verb(self: "Scoped[Any]", *args: object, **kwargs: object) -> object:
        watch = _watch(self)
        if watch.inside_a_verb:  # a verb that calls others is one
            return await run(self, *args, **kwargs)
        with watch.call(self, name, limit, kwargs) as call:
            result = await run(self, *args, **kwargs)
            call.returned(result)
        if (check := checks.get(name)) is not None:
            await check(self, watch, result, kwargs)
        return result

    return watched_verb


def _watch(repository: "Scoped[Any]") -> "Watch":
    return cast("Watch", watch_of(cast("ScopedSession", repository.session)))  # it would not be watched else
