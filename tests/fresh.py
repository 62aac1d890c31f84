"""Interpreters that have imported nothing yet, away from the source tree."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping


def fresh(code: str, *, check: bool = True, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter; check: it must leave with 0."""
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(  # noqa: S603 - this interpreter, and code of the tests
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            cwd=elsewhere,
            env={**os.environ, **(env or {})},
        )
    assert not check or done.returncode == 0, done.stderr
    return done
