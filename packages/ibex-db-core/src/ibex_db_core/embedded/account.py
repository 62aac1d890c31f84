"""The system account that the server runs under: our own, or a powerless one when we are root."""

import os
import pwd
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ibex_db_core.errors import EmbeddedPostgresError

# An administrator who wants more privacy than "nobody" gives creates this account: useradd --system ibex-db
_NAMES = ("ibex-db", "nobody")

# sockaddr_un.sun_path holds 104 bytes on macOS (108 on Linux), and the socket's own name "/.s.PGSQL.65535" and a final
# NUL take 16 of them.
_LONGEST_SOCKET_FOLDER = 104 - 16


@dataclass(frozen=True)
class Account:
    """A uid and its gid; `dropped` when we are root and must become this account first."""

    uid: int
    gid: int
    dropped: bool

    @classmethod
    def owning(cls, data: Path) -> "Account":
        """The account for this data folder: its owner where it exists, so that a restart never changes hands."""
        if os.geteuid() != 0:
            return cls(os.geteuid(), os.getegid(), dropped=False)
        with suppress(FileNotFoundError):
            status = data.stat()
            if status.st_uid != 0:
                return cls(status.st_uid, status.st_gid or status.st_uid, dropped=True)
        for name in _NAMES:
            with suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_uid, entry.pw_gid, dropped=True)
        raise EmbeddedPostgresError(
            "Postgres refuses to run as root, and this system has neither a user ibex-db nor nobody to run it as: "
            "run `useradd --system ibex-db`, run as another user, or set IBEX_DATABASE_URL"
        )

    @property
    def user(self) -> int | None:
        """For subprocess: the uid to become, None to stay."""
        return self.uid if self.dropped else None

    @property
    def group(self) -> int | None:
        """For subprocess: the gid to become, None to stay."""
        return self.gid if self.dropped else None

    @property
    def groups(self) -> list[int] | None:
        """For subprocess: every supplementary group. Not `[]`: Python 3.12.0 takes that for "keep root's groups"."""
        return [self.gid] if self.dropped else None

    def reaches(self, path: Path) -> bool:
        """Whether the account can walk down to `path` and into it."""
        if not self.dropped:
            return True
        path = path.resolve()
        return all(self._may_enter(place) for place in (path, *path.parents))

    def own(self, path: Path) -> None:
        """Hand over a path that we have just created."""
        if self.dropped:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def _may_enter(self, path: Path) -> bool:
        status = path.stat()
        if status.st_uid == self.uid:
            return bool(status.st_mode & stat.S_IXUSR)
        if status.st_gid == self.gid:
            return bool(status.st_mode & stat.S_IXGRP)
        return bool(status.st_mode & stat.S_IXOTH)


def environment() -> dict[str, str]:
    """What the server may see of the caller's environment: nothing, so no PG* variable, library path or secret."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def temporary_folder(account: Account) -> Path:
    """The system's folder for temporary files, unless the account cannot enter it or sockets in it break the limit."""
    ours = len("/ibex-db-") + 12
    for folder in (Path(tempfile.gettempdir()).resolve(), Path("/tmp"), Path("/var/tmp")):  # noqa: S108 - fallbacks, entered only through fresh 0700 folders
        if folder.is_dir() and len(os.fsencode(folder)) + ours <= _LONGEST_SOCKET_FOLDER and account.reaches(folder):
            return folder
    raise EmbeddedPostgresError(
        "no folder for temporary files is both reachable and short enough for a socket: set TMPDIR to one, or set "
        "IBEX_DATABASE_URL"
    )


def public_folder(account: Account) -> Path:
    """A folder of root's that the account can enter, for what cannot stay under a folder that only root may enter."""
    for parent in (Path("/var/lib"), Path("/var/tmp"), Path("/tmp")):  # noqa: S108 - owner and mode are checked below
        folder = parent / "ibex-db"
        with suppress(OSError):
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                folder.chmod(0o711)
            status = folder.lstat()
            trusted = stat.S_ISDIR(status.st_mode) and status.st_uid == 0 and not status.st_mode & 0o022
            if trusted and os.access(folder, os.W_OK) and account.reaches(folder):
                return folder
    raise EmbeddedPostgresError(
        "run as root, the embedded Postgres needs a folder that an unprivileged user can enter, and could make none "
        "in /var/lib, /var/tmp or /tmp: pass a home= that is not under a root-only folder, or set IBEX_DATABASE_URL"
    )
