"""A real Flink cluster on this machine (marked `flink`), and the Kubernetes manifests of one, checked offline."""

import json
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import kubernetes_validate
import pytest
import yaml

from pipelines import extract
from pipelines.common.flags import JobParser, parse

DEPLOY = Path(__file__).parents[2] / "deploy" / "flink"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.29"
"""The oldest release with sidecar containers."""

NOT_RUN = 77
IMAGES = 160


@pytest.fixture(scope="module")
def objects():
    """(kind, name) -> object, of all manifests."""
    documents = [document for path in MANIFESTS for document in yaml.safe_load_all(path.read_text())]
    return {(document["kind"], document["metadata"]["name"]): document for document in documents}


@pytest.fixture(scope="module")
def pods(objects):
    """Name -> pod template of every workload."""
    return {
        name: document["spec"]["template"]
        for (kind, name), document in objects.items()
        if kind in ("Deployment", "Job")
    }


@pytest.fixture(scope="module")
def flags(pods):
    command = pods["imagebeam-extract"]["spec"]["containers"][0]["command"]
    assert command[:2] == ["imagebeam", "extract"]
    return command[2:]


@pytest.fixture(scope="module")
def beam_flags(flags):
    parser = JobParser("extract", beam=True)
    extract.add_arguments(parser)
    return dict(flag.partition("=")[::2] for flag in parse(parser, flags)[1])


def containers(pod):
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifest_is_valid(path):
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_validator_refuses_a_misspelt_field(objects):
    document = json.loads(json.dumps(objects["Deployment", "flink-task-manager"]))
    document["spec"]["template"]["spec"]["initContainer"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="initContainer"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_the_launcher_takes_the_flags_of_the_job(flags, beam_flags):
    assert beam_flags["--runner"] == "FlinkRunner"
    assert set(beam_flags) < {flag.partition("=")[0] for flag in flags}, "some flags are imagebeam's own"


def test_the_job_finds_the_pool_of_each_pod(pods, beam_flags):
    pool = pods["flink-task-manager"]["spec"]["initContainers"][0]
    port = pool["ports"][0]["containerPort"]
    assert beam_flags["--environment_type"] == "EXTERNAL"
    assert beam_flags["--environment_config"] == f"localhost:{port}"
    assert f"--service_port={port}" in pool["command"]
    assert pool["restartPolicy"] == "Always"


def test_the_job_fits_with_a_task_manager_to_spare(objects, beam_flags):
    configuration = yaml.safe_load(objects["ConfigMap", "flink-configuration"]["data"]["config.yaml"])
    replicas = objects["Deployment", "flink-task-manager"]["spec"]["replicas"]
    slots = configuration["taskmanager.numberOfTaskSlots"]
    assert (replicas - 1) * slots >= int(beam_flags["--parallelism"])


def test_everything_addresses_the_same_job_manager(objects, pods, beam_flags):
    service = objects["Service", "flink-job-manager"]
    pod = pods["flink-job-manager"]
    configuration = yaml.safe_load(objects["ConfigMap", "flink-configuration"]["data"]["config.yaml"])
    ports = {port["name"]: port["port"] for port in service["spec"]["ports"]}
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert ports == {port["name"]: port["containerPort"] for port in containers(pod)[0]["ports"]}
    assert configuration["jobmanager.rpc.address"] == configuration["rest.address"] == service["metadata"]["name"]
    assert [configuration[key] for key in ("jobmanager.rpc.port", "blob.server.port", "rest.port")] == list(
        ports.values()
    )
    assert beam_flags["--flink_master"] == f"{service['metadata']['name']}:{ports['rest']}"


def test_deployments_select_their_own_pods(objects):
    for (kind, _), document in objects.items():
        if kind == "Deployment":
            assert document["spec"]["selector"]["matchLabels"] == document["spec"]["template"]["metadata"]["labels"]


def test_mounted_volumes_exist(objects, pods):
    for pod in pods.values():
        volumes = {volume["name"]: volume["configMap"]["name"] for volume in pod["spec"].get("volumes", ())}
        mounted = {mount["name"] for container in containers(pod) for mount in container.get("volumeMounts", ())}
        assert mounted == volumes.keys()
        assert all(("ConfigMap", name) in objects for name in volumes.values())


def test_no_container_runs_as_root_or_without_bounds(pods):
    for pod in pods.values():
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        for container in containers(pod):
            user = {**pod["spec"]["securityContext"], **container.get("securityContext", {})}["runAsUser"]
            assert user > 0
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


def test_kubernetes_and_the_demonstration_run_the_same_flink(objects, pods):
    local = yaml.safe_load((DEPLOY / "conf" / "config.yaml").read_text())
    remote = yaml.safe_load(objects["ConfigMap", "flink-configuration"]["data"]["config.yaml"])
    for key in ("restart-strategy.type", "restart-strategy.fixed-delay.attempts", "rest.port", "jobmanager.rpc.port"):
        assert local[key] == remote[key]
    images = {container["image"] for pod in pods.values() for container in containers(pod)}
    (minor,) = re.findall(r'PUBLISHED_FLINK = "(\d+\.\d+)', (DEPLOY / "jars.py").read_text())
    assert images == {"imagebeam:rootless", f"flink:{minor}-java17"}


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory):
    """The folder of a small run of `make flink-demo`, with a Python worker and a task manager killed."""
    folder = tmp_path_factory.mktemp("flink")
    flags = ["--output", str(folder), "--images", str(IMAGES), "--worker_kills", "1"]
    command = [sys.executable, str(DEPLOY / "demo.py"), *flags]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    if run.returncode == NOT_RUN:
        pytest.skip(run.stderr.strip().splitlines()[-1])
    logs = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in folder.glob("*.log"))
    assert run.returncode == 0, run.stderr + logs
    return folder


@pytest.mark.flink
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("run", ["cluster", "task-manager-killed"])
def test_rows_are_those_of_the_local_run(demonstration, run):
    local, remote = (f"read_parquet('{demonstration / name / 'embeddings' / '*.parquet'}')" for name in ("local", run))
    assert duckdb.execute(f"SELECT count(*), count(DISTINCT key) FROM {remote}").fetchall() == [(IMAGES, IMAGES)]
    assert duckdb.execute(f"(FROM {local} EXCEPT ALL FROM {remote})").fetchall() == []
    manifest = json.loads((demonstration / run / "manifest.json").read_text())
    assert manifest["totals"]["embedded"] == IMAGES


@pytest.mark.flink
@pytest.mark.timeout(1600)
def test_units_spread_and_kills_took_effect(demonstration):
    summary = json.loads((demonstration / "summary.json").read_text())
    assert set(summary["cluster"]["units"]) == {"tm1", "tm2"}
    local = json.loads((demonstration / "local" / "manifest.json").read_text())["totals"]["units"]
    assert sum(summary["cluster"]["units"].values()) == local >= IMAGES // 8
    assert len(summary["worker_kills"]) == 1
    assert summary["task-manager-killed"]["failures"]
    assert summary["task-manager-killed"]["units"].keys() <= {"tm2"}
