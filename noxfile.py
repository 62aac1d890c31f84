"""Everything that a change must pass; `nox -l` lists it, `nox` runs it, `nox -s types` runs one.

The tests run against built wheels, installed into fresh environments: what users get,
never the source tree.  For the quick loop there is `uv run pytest`.
"""

import functools
import pathlib
import shutil
import subprocess

import nox

nox.needs_version = ">=2025.11.12"
nox.options.default_venv_backend = "uv"
nox.options.sessions = ["lint", "types", "alone", "together", "judges"]
nox.options.error_on_external_run = True

ROOT = pathlib.Path(__file__).parent
BUILT = ROOT / ".nox" / "wheels"
LOCKED = ROOT / ".nox" / "locked.txt"

WHEELS = ("ibex-db-core", "ibex-db-tenancy", "ibex-db-memory")
PYPROJECT = nox.project.load_toml("pyproject.toml")
TEST = nox.project.dependency_groups(PYPROJECT, "test")
TYPES = nox.project.dependency_groups(PYPROJECT, "types")

# Two processes, each with a server of its own: a small machine has two cores, and a test waits for its server anyway.
SHARED = ("-n", "2", "--dist", "worksteal")

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


@nox.session
def lint(session: nox.Session) -> None:
    """Style, formatting, and the arrows between the wheels."""
    _sync(session, "lint")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Run mypy and pyright, both strict, on sources, tests, examples and benchmarks."""
    _sync(session, "types", "test")
    session.run("mypy")
    for wheel in WHEELS:  # a run each: every package has its own conftest.py
        session.run("mypy", f"packages/{wheel}/tests")
    session.run("mypy", "tests", "--exclude", "^tests/outages/")
    session.run("mypy", "tests/outages")
    session.run("mypy", "examples")
    session.run("mypy", "benchmarks")
    session.run("pyright", "--pythonpath", shutil.which("python", path=session.bin) or "python")


@nox.session
@nox.parametrize("wheel", WHEELS, ids=WHEELS)
def alone(session: nox.Session, wheel: str) -> None:
    """Test one wheel with nothing but itself and what it requires."""
    installed = WHEELS[: WHEELS.index(wheel) + 1]
    _install(session, installed)
    # A copy, so that no path leads back to the source tree.
    place = pathlib.Path(session.create_tmp()).resolve()
    shutil.rmtree(place / "tests", ignore_errors=True)
    shutil.copytree(ROOT / "packages" / wheel / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for shared in ("docstrings.py", "wire.py"):  # core's, which the tests of other wheels import
        shutil.copy(ROOT / "packages" / WHEELS[0] / "tests" / shared, place / "tests")
    with session.chdir(place):
        # Before the extras: what a wheel requires is enough to import it.
        session.run("python", "-c", PROOF, *installed)
        _install(session, installed, "ibex-db-core[cli,testing]", *(["ibex-db-memory[cli]"] * (wheel == WHEELS[-1])))
        session.run("python", "-c", PROOF, *installed)
        ours = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", ".", "-o", f"pythonpath={place / 'tests'}")
        session.run("pytest", *SHARED, *ours, "tests", *session.posargs)


@nox.session
def together(session: nox.Session) -> None:
    """Test what needs all three wheels: the front door, the schema, the wheels, the README, the examples."""
    _install(session, WHEELS, "ibex-db-core[cli,testing]", "ibex-db-memory[cli]", *TYPES)
    session.run("python", "-c", PROOF, *WHEELS)
    session.run("pytest", *SHARED, "tests", *session.posargs, env={"IBEX_WHEELS": str(BUILT)})


@nox.session
def judges(session: nox.Session) -> None:
    """Let pgrls and squawk, written by others, look at the migrated database and at the migrations."""
    _sync(session, "test", "judges")
    session.run("pytest", "tests/judges", *session.posargs)


@nox.session(default=False)
def importers(session: nox.Session) -> None:
    """Test the importers against tables that mem0 and LangGraph make themselves."""
    _sync(session, "test", "peers")
    session.run("pytest", "packages/ibex-db-memory/tests/test_importers_peers.py", *session.posargs)


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


def _sync(session: nox.Session, *groups: str) -> None:
    """Install the workspace, editable, with what uv.lock names; a lock that is out of date is an error."""
    chosen = [f"--group={group}" for group in groups]
    session.run_install(
        *("uv", "sync", "--locked", "--quiet", "--no-default-groups", *chosen),
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
        external=True,
    )


def _install(session: nox.Session, wheels: tuple[str, ...], *extras: str) -> None:
    """Install built wheels, and for extras the tests' needs with them, at the versions that uv.lock names."""
    _build()
    files = {wheel: next(BUILT.glob(f"{wheel.replace('-', '_')}-*.whl")) for wheel in wheels}
    named = [f"{wheel} @ {file.as_uri()}" for wheel, file in files.items()]
    for extra in extras:
        name, bracket, rest = extra.partition("[")
        named.append(f"{name}{bracket}{rest} @ {files[name].as_uri()}" if name in files else extra)
    session.install(*named, *(TEST if extras else ()), "--constraint", str(LOCKED))


@functools.cache
def _build() -> None:
    """Build all wheels, and write down what uv.lock names; once for all sessions of this run."""
    everything = ("--all-extras", "--all-groups", "--no-emit-workspace", "--no-hashes")
    for command in (
        ("uv", "build", "--quiet", "--wheel", "--all-packages", "--clear", "--out-dir", BUILT),
        ("uv", "export", "--quiet", "--locked", *everything, "--output-file", LOCKED),
    ):
        subprocess.run(command, cwd=ROOT, check=True)  # noqa: S603 - our own words
