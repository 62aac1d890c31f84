"""Column types: vectors that travel in binary, closed sets, moments and JSON objects."""

import math
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence, Set as AbstractSet
from enum import StrEnum
from typing import Any, Protocol, TypeAlias, TypeVar, Union, cast

import pgvector
from pgvector.sqlalchemy import Vector as _PgVector
from sqlalchemy import DateTime, Dialect, Enum
from sqlalchemy.dialects.postgresql import JSONB

from ibex_db_core.errors import InvalidInputError, Shown


class NumberArray(Protocol):
    """A numpy array, in words that need no numpy: a service without it would read Unknown in our signatures."""

    @property
    def ndim(self) -> int:
        """How many axes; a vector has one."""
        ...

    @property
    def dtype(self) -> object:
        """Of what kind the numbers are."""
        ...

    def __iter__(self) -> Iterator[float]:
        """Give the numbers."""
        ...


VectorLike: TypeAlias = Union[Sequence[float], "array[float]", pgvector.Vector, NumberArray]
"""What a vector may be given as: a list, tuple or array of numbers, a numpy array, a pgvector.Vector."""

JsonObject: TypeAlias = dict[str, object]
"""A JSON object: string keys; values of None, bool, int, float, str, list and dict."""

E = TypeVar("E", bound=StrEnum)

# A flag on the dialect of the engines that we made: only their connections
# have the binary codec.  A plain engine keeps pgvector's own text format.
BINARY_VECTORS = "ibex_binary_vectors"

# pgvector sums squares and products in float32. A vector whose largest number lies
# beyond these has sums that under- or overflow, and cosine distances of NaN, or wrong ones.
_SMALLEST, _LARGEST = 1e-15, 1e16

_MOST_DIMENSIONS = 16_000  # pgvector's own limit


def pack_vector(value: VectorLike, *, dim: int | None = None, field: str = "embedding") -> pgvector.Vector:
    """Check a vector and pack it as float32.

    Args:
        value: one vector, shape (dim,); need not be normalised.
        dim: the dimension that the column holds; None accepts any from 1 to 16,000.
        field: the name that an error should give.

    Raises:
        InvalidInputError: not numbers, another dimension, NaN or infinity, all zero, or so long or
            short that float32 cannot hold its square.
    """
    if isinstance(value, _Checked):  # by us, a moment ago: every way to the database passes here again
        if dim is not None and value.dimensions() != dim:
            raise _wrong_dimensions(field, value.dimensions(), dim)
        return value
    floats = _of_numpy(value)
    if floats is None:
        floats = _floats(value, field)
    size = len(floats)
    if not size:
        raise InvalidInputError(field, value, "must have at least one dimension")
    if size > _MOST_DIMENSIONS:
        raise InvalidInputError(field, Shown(f"{size} numbers"), f"must have at most {_MOST_DIMENSIONS:,} dimensions")
    if dim is not None and size != dim:
        raise _wrong_dimensions(field, size, dim)
    _check_length(floats, field)
    return _Checked.of(floats)


class _Checked(pgvector.Vector):
    """A vector that pack_vector() has made; it keeps what travels."""

    wire: bytes

    @classmethod
    def of(cls, floats: Any) -> "_Checked":
        """Go through the wire format: the only public constructor that takes no Python float for each number."""
        size = len(floats)
        if not isinstance(floats, array):
            floats = floats.astype(">f4")
        elif sys.byteorder == "little":
            floats.byteswap()
        wire = size.to_bytes(2, "big") + b"\0\0" + floats.tobytes()
        made = cast("_Checked", cls.from_binary(wire))
        made.wire = wire
        return made

    def to_binary(self) -> bytes:
        return self.wire


def _wrong_dimensions(field: str, given: int, wanted: int) -> InvalidInputError:
    return InvalidInputError(field, Shown(f"{given} numbers"), f"must have exactly {wanted} dimensions")


def _floats(value: VectorLike, field: str) -> "array[float]":
    """Return the numbers as float32, whatever holds them."""
    if isinstance(value, pgvector.Vector):
        return array("f", value.to_list())
    if isinstance(value, (str, bytes, bytearray, Mapping, AbstractSet)):
        # array() would take a bytearray for packed floats, a mapping for its keys, and a set in any order.
        raise InvalidInputError(field, value, "must be a sequence of numbers")
    ndim = getattr(value, "ndim", 1)
    if ndim != 1:
        raise InvalidInputError(field, value, f"must have one axis, shape (dim,), not {ndim}")
    if getattr(getattr(value, "dtype", None), "kind", "f") not in "fiu":
        raise InvalidInputError(field, value, "must hold real numbers")
    try:
        return array("f", value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidInputError(field, value, "must be a sequence of float32 numbers") from exc


def _of_numpy(value: object) -> Any:
    """Return a float32 vector of numpy's as it is: number by number it took 28 us for 384, where memory takes one."""
    numpy: Any = sys.modules.get("numpy")  # whoever has an array has imported it
    given: Any = value
    if numpy is None or not isinstance(given, numpy.ndarray) or given.ndim != 1 or given.dtype != numpy.float32:
        return None
    return given if type(given) is numpy.ndarray else numpy.frombuffer(given.tobytes(), dtype=numpy.float32)


def _check_length(floats: Any, field: str) -> None:
    """Refuse what is not finite, and what float32 cannot square."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:  # a fifth of the time that Python's own loops take
        numbers = numpy.frombuffer(floats, dtype=numpy.float32) if isinstance(floats, array) else floats
        largest = float(numpy.maximum.reduce(numpy.absolute(numbers)))
    else:
        # Sums of float32 cannot overflow a double, so one sum tells whether any is NaN or infinite.
        largest = max(*floats, -min(floats)) if math.isfinite(sum(floats)) else math.nan
    if _SMALLEST <= largest <= _LARGEST:
        return
    if not math.isfinite(largest):
        raise InvalidInputError(field, Shown("NaN or infinity"), "must hold finite float32 numbers only")
    if not largest:
        raise InvalidInputError(
            field, Shown("all zeros"), "must not be the zero vector: its cosine distance is undefined"
        )
    raise InvalidInputError(
        field,
        Shown(f"{largest:.1e}"),
        f"must have its largest number in [{_SMALLEST:.0e}, {_LARGEST:.0e}]: normalise it",
    )


class Vector(_PgVector):
    """pgvector's column type, sent and read in binary on our engines.

    Python side: ``list[float]`` when read; any :data:`VectorLike` when written.
    """

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[VectorLike | None], object]:
        """Hand asyncpg's codec a packed vector; text for engines that lack the codec."""
        binary = getattr(dialect, BINARY_VECTORS, False)

        def process(value: VectorLike | None) -> object:
            if value is None:
                return None
            packed = pack_vector(value, dim=self.dim)
            return packed if binary else packed.to_text()

        return process


def enum_type(members: type[E]) -> Enum:
    """A closed set as varchar(32) with a CHECK, giving the enum back when read.

    Not a native enum: its comparison is not leakproof, so under row-level
    security it never becomes an index condition.
    """
    return Enum(
        members,
        native_enum=False,
        length=32,
        create_constraint=True,
        name=f"{_snake(members.__name__)}_known",
        values_callable=_values,
    )


def _values(members: type[StrEnum]) -> list[str]:
    return [member.value for member in members]


def _snake(name: str) -> str:
    return "".join(f"_{char.lower()}" if char.isupper() and at else char.lower() for at, char in enumerate(name))


Moment = DateTime(timezone=True)
"""A point in time, timestamptz; Python values must be aware."""

Json = JSONB(none_as_null=True)
"""A JSON object, jsonb."""
