#!/usr/bin/env bash
# fsspec: switching off the cache of listings on a client that exists.
#
# One would guess: `fs.use_listings_cache = False` switches it off. The attribute is there after construction, it has the
# name of the option, and it can be set without an error.
# What happens: nothing changes. The cache is an object of its own, which copied the option when the client was made.
# A folder that was listed once is answered from memory, also after another process wrote into it; `ls(refresh=True)`
# and a client made with `use_listings_cache=False` tell the truth.
# Why it matters: programs that share a bucket tell each other by files that work is done (commit records, `_SUCCESS`
# markers). With a stale listing a finished shard looks unfinished: it is done again, or the run ends with an error
# although all its rows are there. Clients are cached by their arguments as well, so the first caller in a process
# decides for all others who open the same address in the same way.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "fsspec==2026.9.0" "s3fs==2026.9.0" "moto[server]==5.2.5"
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import logging
import os
import subprocess
import sys

import fsspec
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
os.environ |= {
    "AWS_ACCESS_KEY_ID": "example",
    "AWS_SECRET_ACCESS_KEY": "example",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ENDPOINT_URL": f"http://{host}:{port}",
}
print("fsspec", fsspec.__version__)
WRITE = "import sys, fsspec; fsspec.filesystem('s3').pipe_file(sys.argv[1], b'x')"


def listed_after_another_process_wrote(bucket, fs, **options):
    """Names that `fs` lists after it has listed one file and another process has written a second."""
    fs.mkdir(bucket)
    fs.pipe_file(f"{bucket}/commits/1", b"x")
    assert len(fs.ls(f"{bucket}/commits", detail=False)) == 1
    subprocess.run([sys.executable, "-c", WRITE, f"{bucket}/commits/2"], check=True)
    return len(fs.ls(f"{bucket}/commits", detail=False, **options))


later = fsspec.filesystem("s3", skip_instance_cache=True)
later.use_listings_cache = False
results = {
    "fs.use_listings_cache = False afterwards": listed_after_another_process_wrote("afterwards", later),
    "ls(refresh=True)": listed_after_another_process_wrote("refresh", later, refresh=True),
    "filesystem(..., use_listings_cache=False)": listed_after_another_process_wrote(
        "option", fsspec.filesystem("s3", use_listings_cache=False)
    ),
}
for case, count in results.items():
    print(f"{case:44} {count} of 2 files listed")
server.stop()
assert list(results.values()) == [1, 2, 2], f"the behaviour changed: {results}"
PYTHON
