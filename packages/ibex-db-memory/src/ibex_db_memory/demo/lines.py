"""Reading JSON Lines and float32 arrays; what is wrong with a file is told by file, line and rule."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from ibex_db_core import validation
from ibex_db_core.errors import ConfigurationError, InvalidInputError
from ibex_db_memory.models import EMBEDDING_DIMENSIONS
from ibex_db_tenancy.models import Agent

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]

__all__ = ["FileInputError", "Line", "read_lines", "read_vectors"]

T = TypeVar("T")


class FileInputError(InvalidInputError):
    """A file refused before any SQL: which file and line, which field, which rule."""

    def __init__(self, file: str, line: int | None, field: str, value: object, rule: str) -> None:
        super().__init__(field, value, rule)
        self.file = file
        self.line = line
        where = file if line is None else f"{file}, line {line}"
        self.args = (f"{where}: {super().__str__()}",)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive pickling."""
        return type(self), (self.file, self.line, self.field, self.value, self.rule)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file: where it is, and its JSON object."""

    file: str
    number: int
    fields: Mapping[str, object]

    def refuse(self, field: str, value: object, rule: str) -> FileInputError:
        """Make the error that names this line."""
        return FileInputError(self.file, self.number, field, value, rule)

    def checked(self, check: Callable[[], T]) -> T:
        """Run a check of ours, and have its error name this line."""
        try:
            return check()
        except FileInputError:
            raise
        except InvalidInputError as exc:
            raise self.refuse(exc.field, exc.value, exc.rule) from exc

    def name(self, *fields: str, default: str) -> str:
        """Return what the first of these fields that is given says, as a name; numbers are names too."""
        found = next((self.fields[field] for field in fields if self.fields.get(field) is not None), default)
        named = str(found) if isinstance(found, int) and not isinstance(found, bool) else found
        return cast("str", self.checked(lambda: validation.check(Agent, "name", named)))


def read_lines(path: Path) -> Sequence[Line]:
    """Read a file of JSON objects, one a line; blank lines at its end are passed over.

    Raises:
        FileInputError: it cannot be read, is empty, or a line is no JSON object.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise FileInputError(str(path), None, "file", path.name, f"must be readable ({exc.strerror})") from exc
    except UnicodeDecodeError as exc:
        raise FileInputError(str(path), None, "file", path.name, f"must be UTF-8 (byte {exc.start} is not)") from exc
    found = list(_objects(path.name, text.rstrip().split("\n")))
    if not found:
        raise FileInputError(path.name, None, "file", "no line", "must hold at least one JSON object")
    return found


def _objects(file: str, lines: Sequence[str]) -> Iterator[Line]:
    if lines == [""]:
        return
    for number, line in enumerate(lines, start=1):
        try:
            value: object = json.loads(line)
        except ValueError as exc:
            raise FileInputError(file, number, "line", line, f"must be JSON ({exc})") from exc
        if not isinstance(value, dict):
            raise FileInputError(file, number, "line", value, "must be a JSON object")
        yield Line(file, number, cast("dict[str, object]", value))


def read_vectors(path: Path, *, lines: int, of: str) -> "Vectors":
    """Read the vectors of a file's lines: float32, shape (lines, 384), row i for line i + 1.

    Args:
        path: a .npy file.
        lines: how many rows there must be.
        of: the name of the file that the rows belong to.

    Raises:
        ConfigurationError: numpy is not installed.
        FileInputError: no such array, another type or shape, or a row that no search could use.
    """
    try:
        import numpy as np
    except ModuleNotFoundError as exc:
        if exc.name != "numpy":
            raise
        raise ConfigurationError("vectors are read with numpy: install ibex-db-memory[cli]") from exc
    try:
        loaded: object = np.load(path, allow_pickle=False)
    except OSError as exc:
        raise FileInputError(str(path), None, "file", path.name, f"must be readable ({exc.strerror})") from exc
    except (ValueError, EOFError) as exc:
        raise FileInputError(path.name, None, "file", path.name, f"must be a .npy array ({exc})") from exc
    wanted = (lines, EMBEDDING_DIMENSIONS)
    if not isinstance(loaded, np.ndarray):
        raise FileInputError(path.name, None, "file", path.name, "must be one .npy array, not an archive of several")
    found = cast("Vectors", loaded)
    if found.shape != wanted:
        raise FileInputError(path.name, None, "shape", found.shape, f"must be {wanted}: one row for each line of {of}")
    if found.dtype != np.float32:
        raise FileInputError(path.name, None, "dtype", str(found.dtype), "must be float32")
    useless = ~(np.isfinite(found).all(axis=1) & found.any(axis=1))
    if useless.any():
        row = int(useless.argmax())
        raise FileInputError(
            path.name, row + 1, "vector", found[row].tolist(), "must be finite and not all zeros (line = row + 1)"
        )
    return found
