"""The data folder: where it lies, how it is made, and the settings that it is served with."""

import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ibex_db_core.embedded.account import Account, environment, public_folder
from ibex_db_core.embedded.binaries import Installation
from ibex_db_core.errors import EmbeddedPostgresError

PASSWORD_FILE = "superuser.password"  # noqa: S105 - the file's name

_BUILTIN_LOCALES_SINCE = 17

# For a small machine that also runs the service: compiling queries costs more than it saves on short ones, and a
# parallel index build needs shared memory that containers (/dev/shm of 64 MB) do not have.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "64MB",
    "max_parallel_maintenance_workers": "0",
    "jit": "off",
    "password_encryption": "scram-sha-256",
}
_THROWAWAY_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


def folder(home: Path, major: int) -> Path:
    """The name carries the major, so that two majors can lie side by side and never read each other's files."""
    return home / f"pgdata-{major}"


def place(home: Path, major: int, account: Account) -> Path:
    """Find or make the data folder of this major, owned by the account and open to nobody else.

    It is HOME/pgdata-<major>. Where we are root and HOME lies under a folder that only root may enter, it is a link
    from there to a folder of its own in /var/lib/ibex-db (or /var/tmp/ibex-db): no folder's mode is ever changed.
    """
    link = folder(home, major)
    others = [path for path in sorted(home.glob("pgdata-*")) if path != link]
    if others and not link.exists():
        raise _mismatch(f"{home} holds {', '.join(path.name for path in others)}", major)
    with suppress(FileNotFoundError):
        written = (link / "PG_VERSION").read_text().strip()
        if written != str(major):
            raise _mismatch(f"{link} was written by PostgreSQL {written}", major)
    if link.is_symlink():
        data = link.resolve()
        data.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        return data
    if account.reaches(home):
        return link
    if link.exists():
        raise EmbeddedPostgresError(
            f"the server's user (uid {account.uid}) cannot enter {home} any more, where its data lie: open the folders "
            f"above it to that user, or move it and pass the new place as home="
        )
    shelf = Path(tempfile.mkdtemp(prefix=f"{home.name}-", dir=public_folder(account)))
    shelf.chmod(0o711)
    link.symlink_to(shelf / link.name)
    return shelf / link.name


def _mismatch(found: str, major: int) -> EmbeddedPostgresError:
    return EmbeddedPostgresError(
        f"{found}, and the installed binaries are PostgreSQL {major}, which cannot read it: dump it with the ibex-db "
        f"that wrote it and restore the dump into another home=; or move the folder away to start empty; or set "
        f"IBEX_DATABASE_URL"
    )


def create(data: Path, home: Path, installation: Installation, major: int, account: Account, *, durable: bool) -> None:
    """Make the cluster beside its place and move it there whole: a killed start leaves nothing half-made behind."""
    for left in data.parent.glob(f".{data.name}-*"):
        shutil.rmtree(left, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{data.name}-", dir=data.parent))
    staging.chmod(0o711)
    fresh, password = staging / "data", secrets.token_hex(16)
    fresh.mkdir(mode=0o700)
    secret = staging / "password"
    write_private(secret, password)
    for path in (fresh, secret):
        account.own(path)
    options = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if major >= _BUILTIN_LOCALES_SINCE else []
    if not durable:
        options.append("--no-sync")
    try:
        answer = subprocess.run(  # noqa: S603 - a program of the wheel that we found ourselves
            [
                *(str(installation.program("initdb")), "-D", str(fresh), "-U", "postgres", "-E", "UTF8", "--locale=C"),
                *("--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}", "--no-instructions"),
                *options,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env=environment(),
            user=account.user,
            group=account.group,
            extra_groups=account.groups,
        )
        if answer.returncode:
            raise EmbeddedPostgresError(
                f"initdb could not make {data}: {answer.stderr.strip()[-2000:]}. Pass another home=, or set "
                f"IBEX_DATABASE_URL"
            )
        write_private(home / PASSWORD_FILE, password)
        fresh.rename(data)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def settings(asked: Mapping[str, str], *, durable: bool) -> dict[str, str]:
    """Ours, what durability decides, and last what the caller asks for."""
    return {**_SETTINGS, **({} if durable else _THROWAWAY_SETTINGS), **asked}


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole, readable by its owner alone."""
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    draft.rename(path)
