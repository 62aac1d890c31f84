"""What the documentation site is made of beside the pages in this folder: a hook of ProperDocs.

Made at each build, from what is installed: the reference, the entity diagram,
the pages about the command line, contributing and what changed.  The navigation
is made here too, so that a page that is added is found without a line elsewhere.
"""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import indent
from typing import cast

import typer
from properdocs.config.defaults import ProperDocsConfig
from properdocs.structure.files import File, Files
from properdocs.structure.pages import Page as SitePage
from typer.core import TyperGroup

from ibex_db_core import Base, BaseRepository
from ibex_db_core.cli.app import build
from ibex_db_core.migrations.wheels import metadata, wheels
from ibex_db_core.schema import ddl, entities, mermaid, svg

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

# Section to what is in it: files, and folders for all that they hold.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Home": ("index.md",),
    "Tutorial": ("tutorial.md",),
    "How to": ("how-to",),
    "Reference": ("reference",),
    "Schema": ("schema.md",),
    "Security": ("security.md", "signed-tenants.md", "doctor.md"),
    "Performance": ("performance.md", "benchmarks.md"),
    "Operations": ("operations",),
    "Upgrading": ("upgrading.md", "changelog.md"),
    "Decisions": ("decisions",),
    "Contributing": ("contributing.md", "releasing.md", "licences.md"),
}
# The last section, for pages that nobody has placed yet.
ELSEWHERE = "More"


def on_files(files: Files, config: ProperDocsConfig) -> Files:
    """Add the pages that are made, and then the navigation over all."""
    pages = dict(_made())
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    config.nav = _navigation(files, pages)
    return files


def _made() -> Iterator[tuple[str, str]]:
    models = metadata()
    tables = entities(models)
    yield "assets/schema.svg", svg(tables)
    yield "assets/schema.mmd", mermaid(tables)
    yield "assets/schema.sql", ddl(models)
    yield "schema.md", _schema(svg(tables), mermaid(tables))
    yield "contributing.md", _from_root("CONTRIBUTING.md")
    yield "changelog.md", _from_root("CHANGELOG.md") + _unreleased()
    if (ROOT / "RELEASING.md").exists():
        yield "releasing.md", _from_root("RELEASING.md")
    yield "reference/README.md", _front()
    yield "reference/command-line.md", _command_line()
    yield "reference/testing.md", _testing()
    for wheel, package in wheels().items():
        yield from _wheel(wheel, package)


# -- navigation


def _navigation(files: Files, made: dict[str, str]) -> list[dict[str, object]]:
    there = sorted(file.src_uri for file in files.documentation_pages())
    placed = [path for named in SECTIONS.values() for place in named for path in there if _is_in(path, place)]
    navigation = list[dict[str, object]]()
    for section, named in SECTIONS.items():
        pages = [path for place in named for path in _ordered(place, there, made)]
        if section == "Reference":
            navigation.append({section: [*_outside_wheels(pages), *_by_wheel(pages)]})
        elif pages:
            navigation.append({section: pages[0] if len(pages) == 1 else pages})
    if lost := [path for path in there if path not in placed]:
        navigation.append({ELSEWHERE: lost})
    return navigation


def _outside_wheels(pages: Sequence[str]) -> list[str]:
    return [page for page in pages if not any(re.match(rf"reference/{wheel}\b", page) for wheel in wheels())]


def _by_wheel(pages: Sequence[str]) -> list[dict[str, list[str]]]:
    return [
        {package: [page for page in pages if re.match(rf"reference/{wheel}\b", page)]}
        for wheel, package in wheels().items()
    ]


def _is_in(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


def _ordered(place: str, there: Sequence[str], made: dict[str, str]) -> list[str]:
    """Return the pages of a place: its README first, the others as the README lists them, what it forgot last."""
    inside = [path for path in there if _is_in(path, place)]
    readme = f"{place}/README.md"
    if readme not in inside:
        return inside
    text = made.get(readme) or (DOCS / readme).read_text(encoding="utf-8")
    listed = [f"{place}/{link}" for link in re.findall(r"\]\(([^)#:]+\.md)\)", text)]
    return sorted(inside, key=lambda path: (path != readme, listed.index(path) if path in listed else len(listed)))


# -- pages of the repository's root


def on_page_markdown(markdown: str, page: SitePage, **_: object) -> str:
    """Turn links of a page that lead out of this folder: there they are files of the repository, here nothing."""
    if page.parent is None:  # alone in its section: a column that lists this page would only take room
        page.meta.setdefault("hide", ["navigation"])
    return _turned(markdown, DOCS / Path(page.file.src_uri).parent)


def _from_root(name: str) -> str:
    """Return a file of the root as a page of this folder."""
    return _turned((ROOT / name).read_text(encoding="utf-8"), ROOT)


def _turned(markdown: str, place: Path) -> str:
    """Make links of a file that lies in a place lead to pages; where there is no page, leave their text alone."""

    def turned(link: re.Match[str]) -> str:
        text, target = link.group(1), link.group(2)
        if re.match("[a-z]+:|#", target) or not re.search(r"[./]", target):  # elsewhere, or code that looks like a link
            return link.group()
        path, _, anchor = target.partition("#")
        aimed = (place / path).resolve()
        if place.is_relative_to(DOCS) and aimed.is_relative_to(DOCS):
            return link.group()
        if aimed.is_relative_to(DOCS) and aimed.is_file():
            return f"[{text}]({aimed.relative_to(DOCS)}{f'#{anchor}' if anchor else ''})"
        return f"`{text}`" if re.fullmatch(r"[\w-]+[./][\w./-]+", text) else text  # the name of a file

    return re.sub(r"\[([^]]+)\]\(([^)\s]+)\)", turned, markdown)


def _unreleased() -> str:
    """Return what the fragments in changes/ say, where there are any."""
    told = [file.read_text(encoding="utf-8").strip() for file in sorted((ROOT / "changes").glob("*.*.md"))]
    return "\n## Not released yet\n\n" + "".join(f"- {text}\n" for text in told) if told else ""


# -- the schema


def _schema(drawing: str, diagram: str) -> str:
    return f"""---
hide: [navigation, toc]
---
# Schema

The tables of all three wheels, as `ibex-db schema` draws them from the installed models. Also
[as SVG alone](assets/schema.svg), [as Mermaid](assets/schema.mmd), and [as SQL](assets/schema.sql), policies, triggers
and grants included.

<div class="ibex-diagram" markdown="0" tabindex="0" role="region" aria-label="Entity diagram, scrolls">
{drawing}</div>

??? note "The same in Mermaid"

    ```text
{indent(diagram, "    ")}    ```
"""


# -- the reference


@dataclasses.dataclass(frozen=True)
class _Page:
    path: str
    title: str
    about: str
    names: list[str]


def _front() -> str:
    rows = "".join(
        f"| [{package}]({wheel}.md) | {_first_line(importlib.import_module(package))} |\n"
        for wheel, package in wheels().items()
    )
    return f"""# Reference

Every public name of every installed wheel is in `ibex_db`: `from ibex_db import Database, Memory`. What is not listed
here is private, and may change in any release. Written from the docstrings.

| wheel | what it holds |
|---|---|
{rows}
Beside them: [the command line](command-line.md), and [what tests are given](testing.md).
"""


def _wheel(wheel: str, package: str) -> Iterator[tuple[str, str]]:
    module = importlib.import_module(package)
    pages = list(_pages(wheel, {name: getattr(module, name) for name in module.__all__}))
    listed = "".join(f"- [{page.title}]({page.path}): {page.about}\n" for page in pages)
    names = "".join(
        f"| [`{name}`]({page.path}#ibex_db.{name}) | {_first_line(getattr(module, name))} |\n"
        for name, page in sorted((name, page) for page in pages for name in page.names)
    )
    yield (
        f"reference/{wheel}.md",
        f"# {package}\n\n{inspect.getdoc(module)}\n\n{listed}\n| name | what it is |\n|---|---|\n{names}",
    )
    for page in pages:
        if page.names == [page.title]:
            head = f"---\ntitle: {page.title}\n---\n"
            yield f"reference/{page.path}", f"{head}::: ibex_db.{page.title}\n    options:\n      heading_level: 1\n"
            continue
        told = "".join(f"::: ibex_db.{name}\n\n" for name in page.names)
        yield f"reference/{page.path}", f"# {page.title}\n\n{told}"


def _pages(wheel: str, public: dict[str, object]) -> Iterator[_Page]:
    left = dict(public)

    def take(wanted: dict[str, object]) -> list[str]:
        for name in wanted:
            del left[name]
        return list(wanted)

    for name in take(_subclasses(left, BaseRepository)):
        yield _Page(f"{wheel}-{_slug(name)}.md", name, _first_line(public[name]), [name])
    if "Database" in left:
        names = take({name: left[name] for name in ("Database", "EngineSettings", "ScopedSession")})
        yield _Page(f"{wheel}-database.md", "Database", "engine, sessions and units of work", names)
    for base, title, about in (
        (Base, "Models", "the mapped tables"),
        (Exception, "Errors", "what is raised, and when"),
    ):
        if names := take(_subclasses(left, base)):
            yield _Page(f"{wheel}-{title.lower()}.md", f"{title} of {wheel}", about, names)
    if left:
        yield _Page(f"{wheel}-values.md", f"Values of {wheel}", "enums, results, settings, constants", list(left))


# Not looked up: whoever builds the site need not have pytest.
_TESTING = {
    "ibex_db_core.testing": ("ibex_db", "ibex_test_database", "TestDatabase"),
    "ibex_db_tenancy.testing": (
        *("tenant", "make_organization", "make_user", "make_agent", "make_token"),
        *("TestTenant", "MakeOrganization", "MakeUser", "MakeAgent", "MakeToken"),
        *("OrganizationColumns", "UserColumns", "AgentColumns"),
    ),
    "ibex_db_memory.testing": ("make_session", "make_memory", "MakeSession", "MakeMemory", "DraftFields"),
}


def _testing() -> str:
    told = "The fixtures of the extra `testing`, and their types; [how they are used](../how-to/test-a-service.md)."
    parts = [f"# Testing\n\n{told}\n"]
    for module, names in _TESTING.items():
        parts.append(f"\n## {module}\n\n")
        parts += (f"::: {module}.{name}\n    options:\n      heading_level: 3\n\n" for name in names)
    return "".join(parts)


def _subclasses(public: dict[str, object], base: type) -> dict[str, object]:
    return {name: found for name, found in public.items() if isinstance(found, type) and issubclass(found, base)}


def _slug(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower()


def _first_line(found: object) -> str:
    if not (inspect.isclass(found) or inspect.isfunction(found) or inspect.ismodule(found)):
        return f"`{found!r}`" if isinstance(found, int | str) else ""
    return (inspect.getdoc(found) or "").partition("\n")[0].replace("``", "`").replace("|", "\\|")


def _command_line() -> str:
    group = cast("TyperGroup", typer.main.get_command(build()))
    parts = ['# Command line\n\n`ibex-db COMMAND`, of the extra `cli`: `uv add "ibex-db-core[cli]"`.\n']
    with typer.Context(group, info_name="ibex-db") as top:
        for name, command in sorted(group.commands.items()):
            with typer.Context(command, info_name=name, parent=top) as context:
                usage = " ".join(command.collect_usage_pieces(context))
                rows = "".join(
                    f"| `{record[0]}` | {record[1]} |\n".replace("\b", "")
                    for option in command.get_params(context)
                    if (record := option.get_help_record(context))
                )
            told = inspect.cleandoc(command.help or "")
            parts.append(f"\n## {name}\n\n```console\n$ ibex-db {name} {usage}\n```\n\n{told}\n")
            parts.append(f"\n| option | what it does |\n|---|---|\n{rows}")
    return "".join(parts)
