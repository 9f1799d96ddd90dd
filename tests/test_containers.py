"""The image and the Kubernetes job: read, not built. What they say fits the lock, the project and today's settings."""

import os
import re
import shlex
import shutil
import subprocess
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from packaging.specifiers import SpecifierSet

from raygen.commands.registry import load
from raygen.store import fetched

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = (ROOT / "pyproject.toml").read_text()
RAYJOB = yaml.safe_load((ROOT / "jobs" / "kubernetes" / "rayjob.yaml").read_text())
CLUSTER = RAYJOB["spec"]["rayClusterSpec"]
HEAD = CLUSTER["headGroupSpec"]
(GPU,) = CLUSTER["workerGroupSpecs"]
PODS = [HEAD["template"]["spec"], GPU["template"]["spec"]]
CONTAINERS = [one for pod in PODS for one in pod["containers"]]
#: The image that cluster.yaml, the RayJob and the guide name.
IMAGE = "raygen:latest"


def closed(*required: str, **properties: Any) -> dict[str, Any]:
    """The schema of an object that has no other fields. The API server drops a field that it does not know."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


TEXT, FLAG = {"type": "string"}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
WORDS = {"type": "object", "additionalProperties": TEXT}
QUANTITY = {"type": ["integer", "string"], "pattern": r"^[0-9]+(\.[0-9]+)?([KMGTPE]i|[numkMGTPE])?$"}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = closed(
    "name",
    name=TEXT,
    image=TEXT,
    command=array(TEXT),
    args=array(TEXT),
    env=array(closed("name", name=TEXT, value=TEXT)),
    envFrom=array(closed(secretRef=closed(name=TEXT, optional=FLAG))),
    resources=closed(requests=QUANTITIES, limits=QUANTITIES),
    securityContext=closed(allowPrivilegeEscalation=FLAG, capabilities=closed(add=array(TEXT), drop=array(TEXT))),
    volumeMounts=array(closed("mountPath", "name", name=TEXT, mountPath=TEXT)),
)
POD = closed(
    "containers",
    containers=array(CONTAINER),
    securityContext=closed(runAsNonRoot=FLAG, runAsUser=COUNT, fsGroup=COUNT),
    tolerations=array(closed(key=TEXT, operator=TEXT, value=TEXT, effect=TEXT)),
    volumes=array(closed("name", name=TEXT, emptyDir=closed())),
    nodeSelector=WORDS,
)
#: The fields that the job uses, of the published RayJob `ray.io/v1` in KubeRay 1.7.0
#: (ray-operator/config/crd/bases/ray.io_rayjobs.yaml).
SCHEMA = closed(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=closed("name", name={"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}),
    spec=closed(
        entrypoint=TEXT,
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        backoffLimit=COUNT,
        rayClusterSpec=closed(
            "headGroupSpec",
            rayVersion=TEXT,
            authOptions=closed(mode={"enum": ["disabled", "token"]}),
            enableInTreeAutoscaling=FLAG,
            autoscalerOptions=closed(idleTimeoutSeconds=COUNT),
            headGroupSpec=closed("template", rayStartParams=WORDS, template=closed(spec=POD)),
            workerGroupSpecs=array(
                closed(
                    "groupName",
                    "maxReplicas",
                    "minReplicas",
                    "template",
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=WORDS,
                    template=closed(spec=POD),
                )
            ),
        ),
    ),
)


def instructions() -> list[tuple[str, str]]:
    """Words and arguments of the Dockerfile, with continued lines joined and its ARG filled in."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = [line.split(maxsplit=1) for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    defaults = dict(rest.split("=", 1) for word, rest in lines if word == "ARG")
    return [(word, re.sub(r"\$\{(\w+)\}", lambda m: defaults.get(m[1], m[0]), rest)) for word, rest in lines]


def locked(name: str) -> str:
    found = re.search(rf"^{re.escape(name)}==([\w.]+)", LOCK, re.M)
    assert found, name
    return found[1]


def test_the_rayjob_has_the_fields_of_the_published_type():
    jsonschema.validate(RAYJOB, SCHEMA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda job: job["spec"].update(rayClusterSpecs={}), "rayClusterSpecs"),
        (lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("maxReplicas"), "maxReplicas"),
        (
            lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
            "string",
        ),
    ],
    ids=["unknown field", "missing field", "number for a word"],
)
def test_the_schema_refuses_what_the_api_server_refuses(change, message):
    job = yaml.safe_load(yaml.safe_dump(RAYJOB))
    change(job)
    with pytest.raises(jsonschema.ValidationError, match=message):
        jsonschema.validate(job, SCHEMA)


def test_the_cluster_of_the_rayjob_starts_from_nothing_and_ends_with_the_job():
    assert CLUSTER["enableInTreeAutoscaling"] is True
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert (GPU["replicas"], GPU["minReplicas"]) == (0, 0)
    assert RAYJOB["spec"]["shutdownAfterJobFinishes"] is True
    assert RAYJOB["spec"]["ttlSecondsAfterFinished"] > 0
    assert HEAD["rayStartParams"] == {"num-cpus": "0"}
    spot = {"cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}
    assert spot <= {one["key"] for one in PODS[1]["tolerations"]}
    assert "tolerations" not in PODS[0]  # the head is not on a spot node


def test_the_rayjob_runs_a_job_that_todays_settings_take():
    program, command, path, *overrides = shlex.split(RAYJOB["spec"]["entrypoint"])
    assert (program, command) == ("raygen", "generate")
    job: Any = load(str(ROOT / Path(path).relative_to("/opt/raygen")), overrides, command)
    assert job.resources.runner == "ray"
    assert job.resources.workers <= GPU["maxReplicas"]
    (worker,) = PODS[1]["containers"]
    limits = worker["resources"]["limits"]
    assert job.resources.gpus == limits["nvidia.com/gpu"] == 1
    assert job.resources.cpus <= int(limits["cpu"])
    assert all("://" in location for location in (job.out, job.conditions, job.checkpoint))


def test_copies_of_the_checkpoint_go_to_a_disk_of_each_pod():
    for pod in PODS:
        (container,) = pod["containers"]
        (variable,) = container["env"]
        assert variable["name"] == fetched.CACHE
        (mount,) = container["volumeMounts"]
        assert mount["mountPath"] == variable["value"]
        assert pod["volumes"] == [{"name": mount["name"], "emptyDir": {}}]


def test_credentials_come_from_a_secret():
    for container in CONTAINERS:
        assert container["envFrom"] == [{"secretRef": {"name": "raygen-storage"}}], container["name"]
        assert not [one for one in container.get("env", ()) if re.search("KEY|SECRET|TOKEN|PASSWORD", one["name"])]


def test_pods_run_as_the_user_of_the_image():
    users = [rest for word, rest in instructions() if word == "USER"]
    assert users[-1].isdigit()
    assert int(users[-1]) != 0
    assert f"--uid {users[-1]} " in " ".join(rest for word, rest in instructions() if word == "RUN")
    for pod in PODS:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == int(users[-1])
    assert all(container["securityContext"]["allowPrivilegeEscalation"] is False for container in CONTAINERS)


def test_one_image_has_the_ray_of_the_lock():
    assert {container["image"] for container in CONTAINERS} == {IMAGE}
    assert yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]["image"] == IMAGE
    assert f"docker build --tag {IMAGE} ." in (ROOT / "docs" / "guides" / "kubernetes.md").read_text()
    assert CLUSTER["rayVersion"] == locked("ray")


def test_the_base_image_has_the_cuda_that_torch_of_the_lock_needs():
    bases = {rest.split()[0] for word, rest in instructions() if word == "FROM"}
    (base,) = bases
    found = re.fullmatch(r"nvidia/cuda:(\d+)\.(\d+)\.\d+-base-ubuntu24\.04", base)
    assert found, base
    majors = set(re.findall(r"^nvidia-[a-z]+-cu(\d+)==", LOCK, re.M))
    assert majors == {found[1]}
    assert locked("cuda-toolkit").split(".")[:2] == [found[1], found[2]]


def test_the_image_has_a_python_that_the_project_takes():
    text = " ".join(rest for _, rest in instructions())
    (version,) = set(re.findall(r"python(3\.\d+)", text))
    wanted = re.search(r'^requires-python = "(.+)"', PROJECT, re.M)
    assert wanted
    assert version in SpecifierSet(wanted[1])


def test_what_the_image_installs_has_hashes():
    """All but the installer itself, which is not in the image, and the project, which is installed from its folder."""
    commands = [part.strip() for word, rest in instructions() if word == "RUN" for part in rest.split("&&")]
    installs = [part for part in commands if "pip install" in part]
    assert len(installs) == 3
    for part in installs:
        assert (
            ("--require-hashes" in part and part.endswith("-r /opt/requirements.lock"))
            or ("--no-index --no-deps" in part and part.endswith("--editable ."))
            or (part.startswith("/opt/uv/") and part.endswith("'uv>=0.5'"))
        ), part
    made = (ROOT / "Makefile").read_text()
    assert "--require-hashes -r requirements.lock" in made
    assert "'uv>=0.5'" in made


def test_the_dockerfile_copies_files_that_exist_and_names_no_registry():
    text = (ROOT / "Dockerfile").read_text()
    assert "://" not in text
    assert not re.search(r"--(extra-)?index|\bADD\b|\bcurl\b|\bwget\b|:latest(?!\s*\.`)", text)
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [
        name
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith("--from=")
        for name in rest.split()[:-1]
    ]
    assert sorted(sources) == sorted(kept)
    for name in sources:
        assert (ROOT / name).exists(), name
    if (ROOT / ".git").exists():
        environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
        listed = subprocess.run(
            ["git", "ls-files", "--", *sources], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        ).stdout.split("\n")
        for name in sources:
            assert any(fnmatch(one, name) or one.startswith(f"{name}/") for one in listed), name


def test_the_files_of_the_image_are_a_project(tmp_path):
    """pyproject.toml names other files; without one of them the installation in the image fails."""
    for name in (line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "raygen/core").mkdir(parents=True)
    shutil.copy(ROOT / "raygen/core/version.py", tmp_path / "raygen/core")
    project = ProjectMetadata(str(tmp_path), PluginManager())
    assert project.core.name == "raygen"
    assert project.core.readme
    assert project.version


def test_every_node_of_the_cluster_has_the_token():
    """Ray's autoscaler hands out no token: a worker without the file does not join."""
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    (user,) = re.findall(r"useradd .* (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert cluster["file_mounts"] == {f"/home/{user}/.ray/auth_token": "~/.ray/auth_token"}
    for part in ("head", "worker"):
        start = [command for command in cluster[f"{part}_start_ray_commands"] if "ray start" in command]
        assert all("RAY_AUTH_MODE=token" in command for command in start)


def test_lists_of_packages_leave_no_cache_in_a_layer():
    for word, rest in instructions():
        if word == "RUN" and "apt-get install" in rest:
            assert rest.startswith("apt-get update")
            assert "--no-install-recommends" in rest
            assert "rm -rf /var/lib/apt/lists/*" in rest
        if word == "RUN" and "pip install" in rest:
            assert "--no-cache" in rest
