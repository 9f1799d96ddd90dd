#!/usr/bin/env bash
# Submit a raygen job to a Ray head node. On one machine, with the dashboard on loopback:
#
#   . .venv/bin/activate; export RAY_AUTH_MODE=token
#   ray start --head --num-cpus=4 --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1
#   jobs/submit.sh generate jobs/generate_quickstart.yaml \
#     conditions="$PWD/runs/quickstart/conditions" out="$PWD/runs/submitted"
#
# The nodes must have raygen's requirements installed; the code itself travels with --working-dir. Paths in the
# job are read by the cluster: give absolute ones, or URLs; relative ones are refused. `ray job submit` itself returns
# only 0 or 1; the exit code of the job is in run.json beside the result.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -lt 2 ]; then
  echo "usage: jobs/submit.sh COMMAND JOB.yaml [KEY=VALUE]..." >&2
  exit 2
fi
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
python -m raygen doctor --upload
command="$1"; job="$2"; shift 2
environment="$(python -c 'import json, os
from raygen.commands.doctor import SKIPPED
print(json.dumps({"excludes": [*sorted(SKIPPED), "benchmarks/results"],
                  "env_vars": {"RAYGEN_SUBMITTED_FROM": os.getcwd()}}))')"
exec ray job submit \
  --address "${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}" \
  --working-dir . \
  --runtime-env-json "$environment" \
  -- python -m raygen "$command" "$job" resources.runner=ray "$@"
