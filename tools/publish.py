"""Upload dist/ to the index at IBEX_INDEX_URL; a version that is there is never overwritten.

Files that are there with the same bytes are left alone: run again, it has nothing to do, and that is a success.

IBEX_INDEX_URL     what `uv add --index` takes: the index's simple pages
IBEX_PUBLISH_URL   where it takes uploads; without it, IBEX_INDEX_URL less its /simple/
UV_PUBLISH_TOKEN, or UV_PUBLISH_USERNAME and UV_PUBLISH_PASSWORD: uv's own
"""

import os
import subprocess
import sys
from pathlib import Path

import artifacts

WHEELS = ("ibex-db-core", "ibex-db-tenancy", "ibex-db-memory")  # in this order: one that is there has what it requires


def main(folder: Path) -> None:
    """Upload what is not there yet."""
    index = os.environ.get("IBEX_INDEX_URL", "").rstrip("/")
    if not index:
        raise SystemExit("IBEX_INDEX_URL names no index: set it to the address that `uv add --index` takes")
    target = os.environ.get("IBEX_PUBLISH_URL") or index.removesuffix("/simple") + "/"
    files = artifacts.files(folder, WHEELS)
    version = files[0].name.split("-")[1]
    ordered = [file for wheel in WHEELS for file in files if file.name.startswith(f"{wheel.replace('-', '_')}-")]
    # check-url: files that are there are compared, not sent again, so that an upload that broke off can be taken up.
    options = ["--publish-url", target, "--check-url", f"{index}/"]
    if "UV_TRUSTED_PUBLISHING" not in os.environ:  # uv would look for it at length wherever credentials are missing
        options += ["--trusted-publishing", "never"]
    command = ("uv", "publish", *options, *map(str, ordered))
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603 - our own words
    sys.stderr.write(done.stderr)
    uploaded = done.stderr.count("Uploading ")
    if done.returncode != 0 and "do not match" in done.stderr:
        raise SystemExit(
            f"{version} is on the index already, with other contents. A published version is never overwritten: "
            "move on with `nox -s bump -- patch`, and build again"
        )
    if done.returncode != 0 and "Missing credentials" in done.stderr:
        raise SystemExit(
            "no credentials: set UV_PUBLISH_TOKEN, or UV_PUBLISH_USERNAME and UV_PUBLISH_PASSWORD; "
            "for an index that asks for none, any word will do"
        )
    if done.returncode != 0:
        raise SystemExit("the upload failed; what was uploaded stays, and the same command goes on from there")
    if not uploaded:  # a job that runs twice; uv has compared every file, and one that differs was an error above
        print(f"{version} is on the index already, the same bytes: nothing was uploaded, and there is nothing to do")
        return
    rest = len(ordered) - uploaded
    print(f"{version} is published: {uploaded} files" + f"; {rest} were there already, the same bytes" * bool(rest))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
