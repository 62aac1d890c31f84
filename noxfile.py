"""Everything that a change must pass; `nox -l` lists it, `nox` runs the quick part, `nox -s everything` the whole.

The tests run against built wheels, installed into fresh environments: what users get,
never the source tree.  For the quick loop there is `uv run pytest`.
"""

import functools
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping

import nox

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT / "tools"))

import artifacts  # noqa: E402 - beside this file, in tools/
import matrix_summary  # noqa: E402
import system_postgres  # noqa: E402

nox.needs_version = ">=2025.11.12"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "types", "alone", "together", "judges", "build", "index", "docs"]
nox.options.error_on_external_run = True
nox.options.error_on_missing_interpreters = False  # the summary says what was not run

BUILT = ROOT / ".nox" / "wheels"
LOCKED = ROOT / ".nox" / "locked.txt"
REPORTS = ROOT / ".nox" / "reports"
DIST = ROOT / "dist"

WHEELS = ("ibex-db-core", "ibex-db-tenancy", "ibex-db-memory")
SUITES = (*WHEELS, "together")
PYTHONS = ("3.11", "3.12", "3.13")
PYPROJECT = nox.project.load_toml("pyproject.toml")
TEST = nox.project.dependency_groups(PYPROJECT, "test")
TYPES = nox.project.dependency_groups(PYPROJECT, "types")
SERVICE = nox.project.dependency_groups(PYPROJECT, "service")

# Two processes, each with a server of its own: a small machine has two cores, and a test waits for its server anyway.
SHARED = ("-n", "2", "--dist", "worksteal")

# Each test's database is a folder of 800 files, made four times as fast in memory as on a disk that others use.
IN_MEMORY = pathlib.Path("/dev/shm")  # noqa: S108 - servers make folders of their own in it, for their eyes only
IN_MEMORY_NEEDS = 4 * 2**30

# What the tests on Citus import from their neighbours.
_SHARED_WITH_CITUS = (
    *("tests/isolation/two.py", "tests/isolation/ways.py"),
    *("tests/routing/arms.py", "tests/routing/recorder.py", "tests/routing/workload.py"),
)

# Run before a wheel's tests, in their environment: what is imported comes from
# site-packages, and the wheels above the one under test are not there.
PROOF = """
import importlib.util, pathlib, sys, sysconfig
site = pathlib.Path(sysconfig.get_path("purelib")).resolve()
import ibex_db, ibex_db_core
for name in ("ibex_db", "ibex_db_core", "ibex_db_tenancy", "ibex_db_memory"):
    spec = importlib.util.find_spec(name)
    found = spec and pathlib.Path(spec.origin).resolve()
    expected = name == "ibex_db" or name.replace("_", "-") in sys.argv[1:]
    assert bool(found) == expected, f"{name}: found {found}, but installed are {sys.argv[1:]}"
    assert not found or found.is_relative_to(site), f"{name} is not the wheel's: {found}"
    print(f"{name}: {found or 'absent'}")
"""


def _show_pythons_of_pyenv() -> None:
    """Let pyenv's shims answer for every Python that it has, after the chosen one: they know only that otherwise.

    That PYENV_VERSION is set says nothing of a choice: a shim sets it for what it starts, `uv run nox` among it.
    """
    pyenv = shutil.which("pyenv")
    if pyenv is None:
        return
    listed = subprocess.run([pyenv, "versions", "--bare"], capture_output=True, text=True, check=False)  # noqa: S603
    ours = "{}.{}.{}".format(*sys.version_info[:3])
    installed = [name for name in listed.stdout.split() if name.startswith(tuple(f"{python}." for python in PYTHONS))]
    chosen = os.environ.get("PYENV_VERSION", ours).split(":")
    os.environ["PYENV_VERSION"] = ":".join([*chosen, *sorted(set(installed) - set(chosen))])


_show_pythons_of_pyenv()


# -- what `nox` runs


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, the arrows between the wheels, their dependencies, and everybody's licences."""
    _sync(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")
    for wheel in WHEELS:
        with session.chdir(ROOT / "packages" / wheel):
            session.run("deptry", "src")
    session.run("python", "tools/licences.py", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy and pyright, both strict, on sources, tests, examples and benchmarks."""
    _sync(session, "types", "test", "service", "release", "docs")
    session.run("mypy")
    for wheel in WHEELS:  # a run each: every package has its own conftest.py
        session.run("mypy", f"packages/{wheel}/tests")
    session.run("mypy", "tests", "--exclude", "^tests/(outages|citus)/")
    session.run("mypy", "tests/outages")
    session.run("mypy", "tests/citus", *_SHARED_WITH_CITUS)
    session.run("mypy", "examples")
    session.run("mypy", "benchmarks")
    session.run("mypy", "tools")
    session.run("mypy", "docs")
    session.run("pyright", "--pythonpath", shutil.which("python", path=session.bin) or "python")


@nox.session
@nox.parametrize("wheel", WHEELS, ids=WHEELS)
def alone(session: nox.Session, wheel: str) -> None:
    """Test one wheel with nothing but itself and what it requires."""
    _test(session, wheel, "locked")


@nox.session
def together(session: nox.Session) -> None:
    """Test what needs all three wheels: the front door, the schema, the wheels, the README, the examples."""
    _test(session, "together", "locked")


@nox.session
def judges(session: nox.Session) -> None:
    """Let pgrls and squawk, written by others, look at the migrated database and at the migrations."""
    _sync(session, "test", "judges")
    session.run("pytest", "tests/judges", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build wheels and sdists into dist/, twice to the same bytes; look at their contents and their metadata."""
    _sync(session, "release")
    _build_everything(DIST)
    again = pathlib.Path(session.create_tmp()) / "again"
    _build_everything(again)
    files = artifacts.files(DIST, WHEELS)
    artifacts.assert_equal(files, again)
    for file in files:
        session.log(f"{file.name}: {artifacts.check_contents(file, ROOT)} files, sha256 {artifacts.sha256(file)[:16]}")
    session.run("twine", "check", "--strict", *map(str, files))


@nox.session
def index(session: nox.Session) -> None:
    """Publish to a package index on loopback, and let a new service install from there and run."""
    _sync(session, "test", "service", "release")
    _build_everything(DIST)
    session.run("pytest", "tests/release", *session.posargs, env={"IBEX_DIST": str(DIST)})


# -- the whole


@nox.session(python=PYTHONS, default=False)
@nox.parametrize("suite", SUITES, ids=SUITES)
def matrix(session: nox.Session, suite: str) -> None:
    """Test on each Python, at the versions that uv.lock names."""
    _test(session, suite, "locked", column=f"Python {session.python}")


@nox.session(python=PYTHONS[0], default=False)
@nox.parametrize("suite", SUITES, ids=SUITES)
def lowest(session: nox.Session, suite: str) -> None:
    """Test with the oldest version of everything that the wheels require."""
    _test(session, suite, "lowest", column="lowest")


@nox.session(python=PYTHONS[-1], default=False)
@nox.parametrize("suite", SUITES, ids=SUITES)
def latest(session: nox.Session, suite: str) -> None:
    """Test with the newest version of everything that the wheels allow, whatever uv.lock says."""
    _test(session, suite, "latest", column="latest")


@nox.session(default=False)
@nox.parametrize("suite", SUITES, ids=SUITES)
def system(session: nox.Session, suite: str) -> None:
    """Test on the system's own Postgres, where there is one: 15 or newer, with pgvector 0.8 or newer."""
    installation = system_postgres.find()
    if installation is None:
        session.skip("no Postgres 15 or newer with pgvector 0.8 or newer was found on this system")
    session.log(f"Postgres {installation.version}, pgvector {installation.pgvector}")
    with system_postgres.running(installation) as url:
        _test(session, suite, "locked", column="system Postgres", env={"IBEX_TEST_DATABASE_URL": url})


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation site into .nox/site; a broken link, a lost anchor or any other warning fails it."""
    _sync(session, "docs")
    session.run("properdocs", "build", "--config-file", "properdocs.yml", *session.posargs)


@nox.session(default=False)
def importers(session: nox.Session) -> None:
    """Test the importers against tables that mem0 and LangGraph make themselves."""
    _sync(session, "test", "peers")
    session.run("pytest", "packages/ibex-db-memory/tests/test_importers_peers.py", *session.posargs)


@nox.session(default=False)
def citus(session: nox.Session) -> None:
    """Test on a Citus cluster: IBEX_CITUS_URL names a superuser in a database of its coordinator."""
    if not os.environ.get("IBEX_CITUS_URL"):
        session.skip("IBEX_CITUS_URL is not set: name a superuser in a database of a Citus coordinator with workers")
    _sync(session, "test")
    session.run("pytest", "tests/citus", *session.posargs)


@nox.session(default=False)
def chaos(session: nox.Session) -> None:
    """Break everything at once for two minutes, or for IBEX_CHAOS_SECONDS; IBEX_CHAOS_SEED=... repeats its chances."""
    _sync(session, "test")
    lasting = {"IBEX_CHAOS_SECONDS": os.environ.get("IBEX_CHAOS_SECONDS", "120")}
    session.run("pytest", "tests/chaos", "--capture=no", "--show-capture=no", *session.posargs, env=lasting)


@nox.session(default=False, venv_backend="none")
def everything(session: nox.Session) -> None:
    """Run the whole matrix after everything else, and a table of it at the end; about an hour and a half."""
    shutil.rmtree(REPORTS, ignore_errors=True)
    for name in ("lint", "types", "judges", "importers", "build", "index"):
        session.notify(name)
    for suite in SUITES:
        for python in PYTHONS:
            session.notify(f"matrix-{python}({suite})")
        session.notify(f"lowest({suite})")
        session.notify(f"latest({suite})")
        session.notify(f"system({suite})")
    session.notify("bench", posargs=["--size", "smoke"])  # the peers' adapters run nowhere else
    session.notify("summary")


@nox.session(default=False, venv_backend="none")
def summary(session: nox.Session) -> None:
    """Show how the last run of each cell of the matrix went."""
    columns = [*(f"Python {python}" for python in PYTHONS), "lowest", "latest", "system Postgres"]
    session.log("\n" + matrix_summary.table(SUITES, columns, REPORTS))


# -- releases


@nox.session(default=False)
def publish(session: nox.Session) -> None:
    """Upload dist/, as `nox -s build` left it, to the index at IBEX_INDEX_URL; a version is never overwritten."""
    _sync(session, "release")
    session.run("python", "tools/publish.py", str(DIST))


@nox.session(default=False)
def bump(session: nox.Session) -> None:
    """Move all three versions, `nox -s bump -- minor`, and write the changelog from its fragments."""
    _sync(session, "release")
    session.run("python", "tools/bump.py", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure beside hand-written asyncpg and the peers; with `-- --size full --docs`, for docs/benchmarks.md."""
    _sync(session, "bench")
    session.run("python", "-m", "benchmarks", *session.posargs)


@nox.session(default=False)
def fix(session: nox.Session) -> None:
    """Let ruff mend what it can."""
    _sync(session, "lint")
    session.run("ruff", "check", "--fix")
    session.run("ruff", "format")


# -- how


def _sync(session: nox.Session, *groups: str) -> None:
    """Install the workspace, editable, with what uv.lock names; a lock that is out of date is an error."""
    chosen = [f"--group={group}" for group in groups]
    session.run_install(
        *("uv", "sync", "--locked", "--quiet", "--no-default-groups", *chosen),
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
        external=True,
    )


def _test(
    session: nox.Session, suite: str, versions: str, *, column: str = "", env: Mapping[str, str] | None = None
) -> None:
    """Run one suite against built wheels: a wheel's own tests, or those that need all of them."""
    report = REPORTS / f"{column}.{suite}.xml"
    report.unlink(missing_ok=True)
    told = (f"--junitxml={report}",) if column else ("-m", "not long")  # without a column it is the quick run
    if suite == "together":
        extras = ("ibex-db-core[cli,otel,testing]", "ibex-db-memory[cli]", *TYPES, *SERVICE)
        _install(session, WHEELS, *extras, versions=versions)
        session.run("python", "-c", PROOF, *WHEELS)
        at = {"IBEX_WHEELS": str(BUILT), **_in_memory(), **(env or {})}
        session.run("pytest", *SHARED, *told, "tests", "--ignore=tests/release", *session.posargs, env=at)
        return
    installed = WHEELS[: WHEELS.index(suite) + 1]
    _install(session, installed, versions=versions)
    # A copy, so that no path leads back to the source tree.
    place = pathlib.Path(session.create_tmp()).resolve()
    shutil.rmtree(place / "tests", ignore_errors=True)
    shutil.copytree(ROOT / "packages" / suite / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for shared in ("docstrings.py", "listening.py", "wire.py"):  # core's, which the tests of other wheels import
        shutil.copy(ROOT / "packages" / WHEELS[0] / "tests" / shared, place / "tests")
    with session.chdir(place):
        # Before the extras: what a wheel requires is enough to import it.
        session.run("python", "-c", PROOF, *installed)
        extras = ("ibex-db-core[cli,otel,testing]", *(["ibex-db-memory[cli]"] * (suite == WHEELS[-1])))
        _install(session, installed, *extras, versions=versions)
        session.run("python", "-c", PROOF, *installed)
        ours = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", ".", "-o", f"pythonpath={place / 'tests'}")
        session.run("pytest", *SHARED, *told, *ours, "tests", *session.posargs, env={**_in_memory(), **(env or {})})


def _in_memory() -> dict[str, str]:
    """Let temporary files, and with them the servers of the tests, lie in memory where there is room for them."""
    if "TMPDIR" in os.environ or not IN_MEMORY.is_dir() or shutil.disk_usage(IN_MEMORY).free < IN_MEMORY_NEEDS:
        return {}
    return {"TMPDIR": str(IN_MEMORY)}


def _install(session: nox.Session, wheels: tuple[str, ...], *extras: str, versions: str) -> None:
    """Install built wheels, and for extras the tests' needs with them.

    Args:
        session: where to.
        wheels: by name.
        extras: of a wheel, such as ``ibex-db-core[cli]``, or other requirements.
        versions: ``locked`` for what uv.lock names, ``latest`` or ``lowest`` for what the wheels allow.
    """
    _build()
    files = {wheel: next(BUILT.glob(f"{wheel.replace('-', '_')}-*.whl")) for wheel in wheels}
    named = [f"{wheel} @ {file.as_uri()}" for wheel, file in files.items()]
    for extra in extras:
        name, bracket, rest = extra.partition("[")
        named.append(f"{name}{bracket}{rest} @ {files[name].as_uri()}" if name in files else extra)
    named += TEST if extras else ()
    match versions:
        case "locked":
            session.install(*named, "--constraint", str(LOCKED))
        case "latest":
            session.install(*named, "--upgrade")
        case "lowest":
            # uv calls direct what is asked for here, so the wheels' own requirements are asked for by name.
            session.install(*named, *_required(wheels, extras), "--resolution", "lowest-direct")
    if extras and versions != "locked":
        session.run("uv", "pip", "list", external=True)


def _required(wheels: tuple[str, ...], extras: tuple[str, ...]) -> Iterator[str]:
    """Give what wheels and the extras asked of them require of others."""
    for wheel in wheels:
        project = nox.project.load_toml(ROOT / "packages" / wheel / "pyproject.toml")["project"]
        asked = [extra[:-1].partition("[")[2].split(",") for extra in extras if extra.startswith(f"{wheel}[")]
        optional = project.get("optional-dependencies", {})
        wanted = [project["dependencies"], *(optional.get(name, []) for names in asked for name in names)]
        yield from (line for lines in wanted for line in lines if not line.startswith("ibex-db"))


@functools.cache
def _build() -> None:
    """Build all wheels, and write down what uv.lock names; once for all sessions of this run."""
    everything = ("--all-extras", "--all-groups", "--no-emit-workspace", "--no-hashes")
    for command in (
        ("uv", "build", "--quiet", "--wheel", "--all-packages", "--clear", "--out-dir", BUILT),
        ("uv", "export", "--quiet", "--locked", *everything, "--output-file", LOCKED),
    ):
        subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603 - our own words


@functools.cache
def _build_everything(folder: pathlib.Path) -> None:
    """Build sdists, and wheels from them, once for each folder; the files' times are the last commit's."""
    command = ("uv", "build", "--quiet", "--all-packages", "--clear", "--out-dir", folder)
    subprocess.run(command, cwd=ROOT, check=True, env=os.environ | artifacts.epoch(ROOT))  # noqa: S603 - our own words
