"""A corpus: memories with their vectors, and questions that it answers; ours from the wheel, or anybody's files."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from ibex_db_core import validation
from ibex_db_core.errors import InvalidInputError
from ibex_db_memory.content import content_hash
from ibex_db_memory.demo.lines import Line, read_lines, read_vectors
from ibex_db_memory.demo.questions import Answers, Question, Scope, read_question
from ibex_db_memory.drafts import MemoryDraft, check_draft
from ibex_db_memory.models import MemoryCategory

if TYPE_CHECKING:
    from ibex_db_memory.demo.lines import Vectors

__all__ = ["Corpus", "Record", "builtin", "own", "slug_of"]

# What a line may say that a memory has a place for; whatever else it says goes into the memory's metadata.
_PLACED = ("content", "category", "source", "confidence", "tags", "embedding_model")
_CONSUMED = {*_PLACED, "text", "agent", "organization", "metadata", "usefulness", "retrievals", "age_days"}
_MOMENTS = ("said_at", "created_at", "created")

# Postgres keeps no moment before 4713 BC; nobody's memory is older than this.
_OLDEST_DAYS = 100_000.0


@dataclass(frozen=True, slots=True)
class Record:
    """One memory to be, and whose it is.

    Attributes:
        draft: the fields that the repository takes, without agent and vector.
        key: what questions call it (the line's ``id`` or ``dia_id``); unique in its agent, where given.
        age_days: how long ago it was learned; None: now.
        retrievals: how often it was used since.
    """

    scope: Scope
    draft: Mapping[str, object]
    key: str | None = None
    age_days: float | None = None
    retrievals: int = 0

    @property
    def twin_key(self) -> tuple[Scope, str]:
        """What two records share that become one memory."""
        return self.scope, content_hash(str(self.draft["content"]))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Memories and questions; row i of a matrix is the vector of item i.

    Attributes:
        handmade: every question was written for a memory here, which it must find.
    """

    name: str
    records: Sequence[Record]
    vectors: "Vectors"
    questions: Sequence[Question] = ()
    question_vectors: "Vectors | None" = None
    handmade: bool = False

    @property
    def scopes(self) -> Sequence[Scope]:
        """Every organization and agent, in the order of their first record."""
        return list(dict.fromkeys(record.scope for record in self.records))

    @property
    def organizations(self) -> Sequence[str]:
        """Every organization, in the order of its first record."""
        return list(dict.fromkeys(organization for organization, _ in self.scopes))

    def drafts(self, positions: Sequence[int], agents: Mapping[Scope, UUID]) -> Iterator[MemoryDraft]:
        """Yield the drafts of some records, vectors included."""
        for position in positions:
            record = self.records[position]
            fields: dict[str, object] = {**record.draft, "embedding": self.vectors[position]}
            yield MemoryDraft(agent_id=agents[record.scope], **fields)  # type: ignore[arg-type]  # checked when read


def builtin() -> Corpus:
    """Read the corpus of the wheel: two organizations, six agents, twenty questions."""
    with as_file(files("ibex_db_memory") / "demo_data") as folder:
        read = own(
            folder / "memories.jsonl",
            folder / "memory_vectors.npy",
            folder / "questions.jsonl",
            folder / "question_vectors.npy",
            name="demo",
        )
    return replace(read, handmade=True)


def own(
    memories: Path,
    vectors: Path,
    questions: Path | None = None,
    question_vectors: Path | None = None,
    *,
    name: str | None = None,
) -> Corpus:
    """Read somebody's own corpus.

    Args:
        memories: JSON Lines.  ``content`` or ``text`` is required; ``agent`` (or ``conversation``),
            ``organization``, ``category`` (default episodic), ``source``, ``confidence``, ``usefulness``, ``tags``,
            ``metadata``, ``age_days`` and ``retrievals`` are known; all else becomes metadata.
        vectors: float32, shape (lines, 384).
        questions: JSON Lines.  ``question`` (or ``text``) is required; ``agent`` (or ``conversation``) and
            ``organization`` are its scope, ``evidence`` (ids) or ``expected`` (rows from 0) its answers.
        question_vectors: float32, shape (lines, 384).
        name: what to call it; None: the file's name.  Lines without an organization go into one of this name.

    Raises:
        FileInputError: which file and line, which field, which rule; before any SQL.
        InvalidInputError: questions without vectors, or the other way round.
    """
    if (questions is None) != (question_vectors is None):
        missing = "question_vectors" if question_vectors is None else "questions"
        raise InvalidInputError(missing, None, "is required: questions and their vectors come together")
    name = name or memories.stem
    lines = read_lines(memories)
    records = [line.checked(lambda line=line: _record(line, name)) for line in lines]  # type: ignore[misc]
    matrix = read_vectors(vectors, lines=len(records), of=memories.name)
    if questions is None or question_vectors is None:
        return Corpus(name, records, matrix)
    answers = Answers((record.scope, record.key) for record in records)
    asked = [read_question(line, name, answers) for line in read_lines(questions)]
    return Corpus(name, records, matrix, asked, read_vectors(question_vectors, lines=len(asked), of=questions.name))


def slug_of(name: str) -> str:
    """Return a name that is a slug as it is, any other with a hash, so that two names never share one."""
    cleaned = re.sub("[^a-z0-9]+", "-", name.lower()).strip("-")[:80]
    return name if cleaned == name else f"{cleaned}-{sha256(name.encode()).hexdigest()[:8]}".lstrip("-")


# -- one line


def _record(line: Line, default: str) -> Record:
    fields = line.fields
    content = fields.get("content", fields.get("text"))
    if content is None:
        raise line.refuse("content", None, "is required (content or text)")
    age = fields.get("age_days")
    age_days = None if age is None else validation.number("age_days", age, 0, _OLDEST_DAYS)
    draft: dict[str, object] = {field: fields[field] for field in _PLACED if field in fields} | {"content": content}
    draft.setdefault("category", MemoryCategory.EPISODIC)
    draft["usefulness_score"] = fields.get("usefulness")
    given = validation.json_object("metadata", fields.get("metadata", {}))
    draft["metadata"] = {name: value for name, value in fields.items() if name not in _CONSUMED} | given
    draft["valid_from"] = _moment(fields) if age_days is None else datetime.now(UTC) - timedelta(days=age_days)
    check_draft({**draft, "agent_id": _NOBODY}, _NOBODY)
    key = fields.get("dia_id", fields.get("id"))
    return Record(
        scope=(line.name("organization", default=default), line.name("agent", "conversation", default="agent")),
        draft=draft,
        key=None if key is None else str(key),
        age_days=age_days,
        retrievals=validation.integer("retrievals", fields.get("retrievals", 0), 0, 2**31 - 1),
    )


_NOBODY = UUID(int=0)


def _moment(fields: Mapping[str, object]) -> datetime | None:
    """Return when the line says it was said, where it says so in ISO 8601 with a time zone."""
    for field in _MOMENTS:
        try:
            found = datetime.fromisoformat(str(fields.get(field)))
        except ValueError:
            continue
        if found.tzinfo is not None:
            return found
    return None
