"""A page of docs/operations as somebody follows it: its blocks, and a shell that runs them as they are written.

`console` blocks hold commands after `$ `, `> ` for a command's next line, and below a command what it prints, where the
page shows it; `...` there stands for anything.  `sql` blocks go to psql as the owner, or as the title says:
``title="psql $IBEX_PLATFORM_URL"``.  A block of another language with a title is written to a file of that name.

Two comments in front of a block say what a reader need not be told:

``<!-- leaves with 1 -->``    the exit code of the block's last command; 0 otherwise
``<!-- not run: why -->``     nothing can run it here; the tests count these
"""

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "operations"

_BLOCK = re.compile(
    r'(?:^<!-- (?P<marker>[^\n]*?) -->\n\n?)?^```(?P<language>\w+)(?: title="(?P<title>[^"]+)")?\n(?P<text>.*?)^```$',
    re.MULTILINE | re.DOTALL,
)
_ANY = "..."

# Nothing waits for a person, and a restore of a few rows takes a second.
_SECONDS = 300

SHOWN_ONLY = frozenset({"text", "ini", "yaml", "json", "toml", "mermaid", "dockerfile"})
"""Languages of blocks that are read and not run."""


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    title: str
    text: str
    leaves_with: int = 0
    not_run: str = ""


@dataclass(frozen=True)
class Command:
    """One command of a `console` block, and the lines that the page shows below it; None: it shows none."""

    line: str
    shown: str | None


def blocks(page: str) -> Iterator[Block]:
    """Yield a page's blocks, in order."""
    for found in _BLOCK.finditer(page):
        marker = found["marker"] or ""
        code = re.fullmatch(r"leaves with (\d+)", marker)
        why = re.fullmatch(r"not run: (\S.*)", marker)
        assert code or why or not marker, f"no marker of ours: {marker}"
        yield Block(
            found["language"],
            found["title"] or "",
            found["text"],
            int(code[1]) if code else 0,
            why[1] if why else "",
        )


def commands(text: str) -> Sequence[Command]:
    """Return the commands of a `console` block."""
    found: list[tuple[list[str], list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and found and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            assert found, f"a console block begins with a command, not with {line!r}"
            found[-1][1].append(line)
    return [Command("\n".join(typed), "\n".join(shown) if shown else None) for typed, shown in found]


def fits(printed: str, shown: str) -> bool:
    """Tell whether a command printed what the page shows; blanks at the ends of lines and of the whole do not count."""
    pattern = re.escape(_plain(shown)).replace(re.escape(_ANY), ".*?")
    return re.fullmatch(pattern, _plain(printed), re.DOTALL) is not None


def _plain(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


@dataclass
class Shell:
    """Somebody's terminal: a folder, and variables that one command leaves to the next.

    Attributes:
        user, group: of the server's account, for blocks that say "as the server's user" in their title.
        ran: how many commands and SQL blocks.
    """

    folder: Path
    environment: dict[str, str]
    user: int | None = None
    group: int | None = None
    password: str = ""
    ran: int = 0
    not_run: list[str] = field(default_factory=list[str])

    def follow(self, page: str) -> None:
        """Do everything that a page says."""
        for block in blocks(page):
            if block.not_run:
                self.not_run.append(block.not_run)
            elif block.language == "console":
                self._console(block)
            elif block.language == "sql":
                self._sql(block)
            elif block.title:
                (self.folder / block.title).write_text(block.text)
            elif block.language == "python":
                compile(block.text, "a snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            else:
                assert block.language in SHOWN_ONLY, f"nobody runs this block: {block}"

    def _console(self, block: Block) -> None:
        every = commands(block.text)
        for number, command in enumerate(every, 1):
            last = number == len(every)
            done = self.run(command.line, as_server="as the server's user" in block.title)
            expected = block.leaves_with if last else 0
            assert done.returncode == expected, (
                f"$ {command.line}\nleft with {done.returncode}, not {expected}:\n{done.stdout}{done.stderr}"
            )
            assert command.shown is None or fits(done.stdout, command.shown), (
                f"$ {command.line}\nprinted:\n{done.stdout}\nand not:\n{command.shown}"
            )

    def _sql(self, block: Block) -> None:
        login = re.fullmatch(r"psql \$(\w+)", block.title or "psql $IBEX_OWNER_URL")
        assert login, f"a title of an sql block says who runs it, psql $IBEX_OWNER_URL, and not {block.title!r}"
        written = block.text.replace("'...'", f"'{self.password}'")
        done = self.run(f'psql "${login[1]}" --no-psqlrc --set=ON_ERROR_STOP=1 --file=-', given=written)
        assert done.returncode == block.leaves_with, f"{block.text}\n{done.stdout}{done.stderr}"

    def run(self, line: str, *, given: str = "", as_server: bool = False) -> subprocess.CompletedProcess[str]:
        """Run one command, and keep the variables and the folder that it leaves."""
        self.ran += 1
        left = self.folder / ".environment"
        left.unlink(missing_ok=True)
        user, group = (self.user, self.group) if as_server else (None, None)
        script = f"set -o pipefail\n{line}\nleft=$?\n" + ("" if as_server else f"env -0 > {left}; pwd > {left}.pwd\n")
        done = subprocess.run(  # noqa: S603 - what the page says
            ["bash", "-c", f"{script}exit $left"],  # noqa: S607 - the reader's shell
            cwd=self._at(),
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
            user=user,
            group=group,
            extra_groups=[group] if group is not None else None,
        )
        if left.exists():
            self.environment = dict(_variables(left.read_text()))
        return done

    def _at(self) -> Path:
        kept = self.folder / ".environment.pwd"
        return Path(kept.read_text().rstrip("\n")) if kept.exists() else self.folder


def _variables(written: str) -> Mapping[str, str]:
    pairs = (line.partition("=") for line in written.split("\0") if line)
    return {name: value for name, _, value in pairs if name not in {"_", "SHLVL"}}
