#!/usr/bin/env bash
# Marks of `xdist_group` under pytest 9.2.
#
# One would guess: `pytest -n 2 --dist=loadgroup` runs all tests with the same `@pytest.mark.xdist_group` in one process,
# as pytest-xdist documents, or ends with an error.
# What happens: pytest-xdist 3.8.0 writes the group behind the test's name, into `item._nodeid`. pytest 9.2.0 builds the name
# from another attribute and does not read that one. The run is green, and each test goes wherever there is room. With
# pytest 8.4 the group holds.
# Why it matters: groups are there for tests that must not run beside each other, or share something costly (a database, a
# port, a cluster). They now do run beside each other, and nothing says so: some fail at times, others start what was
# meant to be started once, several times.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/test_groups.py" <<'PYTHON'
import os
import time

import pytest


@pytest.mark.parametrize("i", range(8))
@pytest.mark.xdist_group("one")
def test_together(i):
    time.sleep(0.2)
    with open("where", "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PYTHON
processes() {
  python3 -m venv "$folder/$1"
  "$folder/$1/bin/pip" install --quiet --disable-pip-version-check "pytest==$1" "pytest-xdist==3.8.0"
  (cd "$folder" && rm -f where && "$folder/$1/bin/python" -m pytest -q -n 2 --dist=loadgroup -p no:cacheprovider test_groups.py > log 2>&1)
  sort -u "$folder/where" | wc -l
}
before=$(processes 8.4.2)
now=$(processes 9.2.0)
echo "pytest-xdist 3.8.0 with pytest 8.4.2: the group ran in $before process(es)"
echo "pytest-xdist 3.8.0 with pytest 9.2.0: the group ran in $now process(es)"
[ "$before" = 1 ] || { echo "the group does not hold with pytest 8.4.2 either"; exit 1; }
[ "$now" = 2 ] || { echo "the behaviour changed: the group holds"; exit 1; }
