"""Tests that need a server to themselves."""

import os

import pytest

# Most likely: each database that another process drops makes a checkpoint, and a page that it writes is not pruned
# meanwhile.  Alone on a server all updates are HOT; on one that two test processes shared, 505 to 590 of 590 were.
ALONE = pytest.mark.skipif(
    {"IBEX_TEST_DATABASE_URL", "PYTEST_XDIST_WORKER"} <= os.environ.keys(),
    reason="another process makes checkpoints on the same server: run it with -n 0",
)
