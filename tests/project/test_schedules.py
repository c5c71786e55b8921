"""What deploy/schedule ships is well formed, and says of exit codes what the jobs say."""

import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCHEDULE = ROOT / "deploy" / "schedule"
KUBERNETES = "1.33"
NO_RETRY = [2, 3]
"""Exit codes that a retry cannot change (README, "exit code")."""


def load(name):
    return yaml.safe_load((SCHEDULE / "kubernetes" / name).read_text())


@pytest.mark.parametrize("name", ["job.yaml", "cron-job.yaml"])
def test_kubernetes_manifest_is_valid(name):
    kubernetes_validate.validate(load(name), KUBERNETES, strict=True)


def test_cron_job_runs_the_same_job():
    assert load("cron-job.yaml")["spec"]["jobTemplate"]["spec"] == load("job.yaml")["spec"]
    assert load("cron-job.yaml")["spec"]["concurrencyPolicy"] == "Forbid"


@pytest.mark.parametrize(
    "path", [SCHEDULE / "kubernetes" / "job.yaml", ROOT / "deploy" / "flink" / "kubernetes" / "extract.yaml"]
)
def test_pods_are_not_retried_on_exit_codes_2_and_3(path):
    spec = yaml.safe_load(path.read_text())["spec"]
    (rule,) = (rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    assert rule["onExitCodes"]["values"] == NO_RETRY
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy is refused with another


def flags_of(document):
    (container,) = document["spec"]["template"]["spec"]["containers"]
    return container["command"]


@pytest.mark.parametrize(
    "path", [SCHEDULE / "kubernetes" / "job.yaml", ROOT / "deploy" / "flink" / "kubernetes" / "extract.yaml"]
)
def test_commands_parse(path):
    from pipelines import extract
    from pipelines.common.flags import JobParser, parse

    command = flags_of(yaml.safe_load(path.read_text()))
    assert command[:2] == ["imagebeam", "extract"]
    parser = JobParser("extract", beam=True)
    extract.add_arguments(parser)
    args, _ = parse(parser, command[2:])
    assert args.output == "gs://BUCKET/embeddings"


def test_systemd_units_are_valid(tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    for path in (SCHEDULE / "systemd").iterdir():
        text = path.read_text()
        # The command and the user are those of another machine.
        text = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE)
        (tmp_path / path.name).write_text(text.replace("User=imagebeam\n", "User=root\n"))
    units = sorted(map(str, tmp_path.iterdir()))
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "imagebeam" in line]
    assert ours == []
    service = (SCHEDULE / "systemd" / "imagebeam-extract.service").read_text()
    assert f"RestartPreventExitStatus={' '.join(map(str, NO_RETRY))}" in service


def test_page_lists_every_exit_code():
    page = (ROOT / "docs" / "scheduling.md").read_text()
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == ["0", "1", "2", "3", "130", "143", "137"]


def test_page_names_existing_files():
    page = (ROOT / "docs" / "scheduling.md").read_text()
    for name in re.findall(r"`?(deploy/[\w./*-]+)", page):
        assert list(ROOT.glob(name.rstrip("."))), name
