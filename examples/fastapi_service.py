"""A memory service: each request is one transaction of the organization whose token it carries.

    uv run uvicorn --app-dir examples fastapi_service:app

Errors leave as problem details (RFC 9457), so that a client reads one shape whatever went wrong.
"""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel

from ibex_db import (
    AccessDeniedError,
    ConflictError,
    Database,
    ForeignKeyError,
    IbexError,
    IllegalTransitionError,
    InvalidInputError,
    InvalidTokenError,
    MemoryRepository,
    NotFoundError,
    RuleViolationError,
    ScopedSession,
    StatementTimeoutError,
    TokenIdentity,
    TransientError,
)

log = logging.getLogger(__name__)


# -- one Database for the life of the service


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    """Open the database of IBEX_DATABASE_URL, and close it; migrations are the deployment's work."""
    async with Database.from_env() as db:
        app.state.db = db
        yield


def database(request: Request) -> Database:
    """Give it to a request; a test overrides this one."""
    db: Database = request.app.state.db
    return db


# -- whose request it is

bearer = HTTPBearer(auto_error=False)


async def identity(
    db: Annotated[Database, Depends(database)],
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> TokenIdentity:
    """Tell whom the token speaks for; a request without one is refused as one with a false one is."""
    if credentials is None:
        raise InvalidTokenError
    return await db.authenticate(credentials.credentials)


async def tenant(
    db: Annotated[Database, Depends(database)], who: Annotated[TokenIdentity, Depends(identity)]
) -> AsyncIterator[ScopedSession]:
    """Give one transaction of the token's organization: it commits, or rolls back on an error."""
    async with db.tenant(who.org_id) as session:
        yield session


# scope="function" ends the transaction before the answer leaves: what a client is told is committed.
Tenant = Annotated[ScopedSession, Depends(tenant, scope="function")]


# -- what it does


class Statement(BaseModel):
    """What an agent is to remember."""

    agent_id: UUID
    content: str
    category: str = "factual"
    tags: list[str] = []


class Remembered(BaseModel):
    """What is remembered."""

    id: UUID
    content: str


app = FastAPI(lifespan=lifespan)


@app.post("/memories", status_code=201)
async def remember(statement: Statement, session: Tenant) -> Remembered:
    """Keep a statement, once."""
    kept = await MemoryRepository(session).remember(
        agent_id=statement.agent_id,
        content=statement.content,
        category=statement.category,
        tags=statement.tags,
    )
    return Remembered(id=kept.memory.id, content=kept.memory.content)


@app.get("/memories")
async def search(text: str, session: Tenant, limit: int = 10) -> list[Remembered]:
    """Find statements by their words, the best first."""
    hits = await MemoryRepository(session).search(text=text, limit=limit)
    return [Remembered(id=hit.memory.id, content=hit.memory.content) for hit in hits]


@app.get("/memories/{ident}")
async def get(ident: UUID, session: Tenant) -> Remembered:
    """Give one statement."""
    memory = await MemoryRepository(session).get(ident)
    return Remembered(id=memory.id, content=memory.content)


# -- errors

# The first that fits; what is not here is a defect of the service, and is not explained to a client.
STATUSES: tuple[tuple[type[IbexError], int, str], ...] = (
    (InvalidInputError, 422, "Invalid input"),
    (InvalidTokenError, 401, "Invalid token"),
    (AccessDeniedError, 403, "Access denied"),
    (NotFoundError, 404, "Not found"),
    (ConflictError, 409, "Conflict"),
    (IllegalTransitionError, 409, "Not in this state"),
    (ForeignKeyError, 422, "Refers to what is not there"),
    (RuleViolationError, 422, "Against a rule"),
    (TransientError, 503, "Try again"),
    (StatementTimeoutError, 504, "Took too long"),
)
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


def problem(status: int, title: str, **members: object) -> JSONResponse:
    """Answer with problem details."""
    return JSONResponse(
        {"type": "about:blank", "title": title, "status": status, **members},
        status_code=status,
        headers=HEADERS.get(status),
        media_type="application/problem+json",
    )


@app.exception_handler(IbexError)
async def on_ibex_error(_request: Request, exc: Exception) -> JSONResponse:
    """Map the library's errors."""
    for kind, status, title in STATUSES:
        if isinstance(exc, kind):
            # What the server says may name tables and values of a row: that is for the log.
            if isinstance(exc, InvalidInputError):
                return problem(status, title, detail=str(exc), field=exc.field, rule=exc.rule)
            if isinstance(exc, (NotFoundError, IllegalTransitionError)):
                return problem(status, title, detail=str(exc))
            return problem(status, title)
    log.error("the service failed", exc_info=exc)
    return problem(500, "Internal error")


@app.exception_handler(RequestValidationError)
async def on_validation_error(_request: Request, exc: Exception) -> JSONResponse:
    """Give FastAPI's own refusals the same shape."""
    errors: list[dict[str, str]] = []
    if isinstance(exc, RequestValidationError):
        errors += ({"field": ".".join(map(str, error["loc"])), "rule": error["msg"]} for error in exc.errors())
    return problem(422, "Invalid input", errors=errors)
