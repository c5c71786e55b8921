"""What jobs say: JSON lines for machines, quiet, and a stderr that never decides whether the work is done."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
import types
import unicodedata
from pathlib import Path

import pytest

from pipelines import cli
from pipelines.common import log
from pipelines.common.console import say
from pipelines.options.endpoints import check_endpoints
from transforms.core.errors import ImagebeamError

WRITES_A_FILE = """
import logging, pathlib, sys, types
from pipelines import cli
from pipelines.common.console import say

def main(argv):
    for number in range(2000):
        say(f"line {number} " + "x" * 100)
        print("a table")
    logging.getLogger("apache_beam").warning("a record")
    pathlib.Path(sys.argv[1]).write_text("done")
    return 0

sys.modules["some_job"] = types.SimpleNamespace(main=main)
cli.JOBS["extract"] = cli.Job("some_job", "")
sys.exit(cli.run_job("extract", sys.argv[2:]))
"""


@pytest.fixture
def run(monkeypatch):
    """Runs a function as the job `extract`; returns the exit code."""

    def call(main, *argv):
        monkeypatch.setitem(sys.modules, "some_job", types.SimpleNamespace(main=lambda arguments: main() or 0))
        monkeypatch.setitem(cli.JOBS, "extract", cli.Job("some_job", ""))
        return cli.run_job("extract", list(argv))

    return call


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def speak():
    say("embedded", {"images": 7})
    say("WARNING: odd")
    logging.getLogger("apache_beam.x").warning("slow %s", "worker")
    logging.getLogger("apache_beam.x").warning('Worker: message: "No semi_persistent_directory found:  User"')
    logging.getLogger("tensorflow").warning("5 out of the last 5 calls to f triggered tf.function retracing.")
    log.add_totals(records=9)


def test_json_log(run, capsys):
    assert run(speak, "--log_format", "json") == 0
    found = lines(capsys.readouterr().err)
    assert [(line["severity"], line["message"]) for line in found[:3]] == [
        ("INFO", "embedded"),
        ("WARNING", "WARNING: odd"),
        ("WARNING", "slow worker"),
    ]
    assert found[0]["images"] == 7
    assert found[2]["logger"] == "apache_beam.x"
    assert (found[3]["exit_code"], found[3]["totals"]) == (0, {"records": 9})
    assert all("time" in line for line in found)


@pytest.mark.parametrize(("error", "code"), [(ImagebeamError("wrong\nflag"), 2), (RuntimeError("x"), 1)])
def test_error_is_a_json_line_before_the_last(run, capsys, error, code):
    def fail():
        raise error

    assert run(fail, "--log_format=json", "--debug") == code
    said, last = lines(capsys.readouterr().err)
    assert said["severity"] == "ERROR"
    assert "Traceback" in said["traceback"]
    assert last["exit_code"] == code


def test_quiet_keeps_warnings(run, capsys):
    assert run(speak, "--quiet") == 0
    assert capsys.readouterr().err == "WARNING: odd\nslow worker\n"


NASTY = "a\x1b[2Jb\u202ec\x00d\rimagebeam: all is well"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_control_characters_in_names_are_escaped(run, capsys, log_format):
    def fail():
        logging.getLogger("x").warning("%s\nimagebeam: all is well", NASTY)
        say(f"WARNING: {NASTY}")
        raise ImagebeamError(f"No such file: {NASTY}\nimagebeam: all is well")

    assert run(fail, f"--log_format={log_format}", "--debug") == 2
    written = capsys.readouterr().err
    assert not any(unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp") for one in written.replace("\n", ""))
    assert not [line for line in written.splitlines() if line.startswith("imagebeam: all is well")]


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "2>&1 | head -1", ">&- 2>&-", ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_broken_stderr_does_not_change_the_result(tmp_path, redirect, log_format):
    script = tmp_path / "job.py"
    script.write_text(WRITES_A_FILE)
    command = f"set -o pipefail; '{sys.executable}' '{script}' '{tmp_path}/out' --log_format {log_format} {redirect}"
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, check=False)
    assert (tmp_path / "out").read_text() == "done"
    assert done.returncode == 0


def test_characters_that_stdout_cannot_encode_are_written_as_codes(tmp_path):
    """As of a label, in a locale without UTF-8."""
    code = "from pipelines.common import log\nwith log.logging_as([], steady_stdout=False): print('caf\xe9 \u732b')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "caf\\xe9 \\u732b\n")


def test_sigterm_ends_with_a_line_and_143(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(WRITES_A_FILE.replace("    for number", "    __import__('time').sleep(60)\n    for number"))
    command = [sys.executable, script, tmp_path / "out", "--log_format", "json"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    time.sleep(3)
    process.send_signal(signal.SIGTERM)
    said, last = lines(process.communicate(timeout=20)[1])
    assert "SIGTERM" in said["message"]
    assert (process.returncode, last["exit_code"]) == (143, 143)


def silent_port():
    """A port that accepts connections and never says a word."""
    server = socket.create_server(("127.0.0.1", 0))
    return server, f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "values",
    [
        {"runner": "PortableRunner", "job_endpoint": "127.0.0.1:9"},
        {"runner": "PortableRunner", "job_endpoint": "no-such-host.invalid:8099"},
        {"runner": "portable", "job_endpoint": "127.0.0.1:9"},
        {"runner": "FlinkRunner", "job_endpoint": "127.0.0.1:9"},
        {"runner": "SparkRunner", "job_endpoint": "127.0.0.1:9"},
        {"runner": "FlinkRunner", "flink_master": "127.0.0.1:9"},
        {"runner": "flink", "flink_master": "127.0.0.1:9"},
        {"runner": "FlinkRunner", "flink_master": "http://127.0.0.1:9"},
    ],
)
def test_a_dead_endpoint_is_named(monkeypatch, values):
    monkeypatch.setattr("pipelines.options.endpoints.SECONDS", 0.5)
    with pytest.raises(ImagebeamError, match=next(value for name, value in values.items() if name != "runner")):
        check_endpoints(values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"runner": "PortableRunner"}, "--job_endpoint"),
        ({"runner": "portable", "job_endpoint": ""}, "--job_endpoint"),
        ({"runner": "apache_beam.runners.portability.portable_runner.PortableRunner"}, "--job_endpoint"),
        ({"runner": "SparkRunner", "spark_submit_uber_jar": True}, "--spark_rest_url"),
    ],
)
def test_an_endpoint_that_is_not_told_is_named(values, named):
    with pytest.raises(ImagebeamError, match=f"{named}.*{values['runner']}"):
        check_endpoints(values)


def test_a_port_without_a_job_server_is_named(monkeypatch):
    monkeypatch.setattr("pipelines.options.endpoints.SECONDS", 0.5)
    server, address = silent_port()
    with server, pytest.raises(ImagebeamError, match=address):
        check_endpoints({"runner": "PortableRunner", "job_endpoint": address})
    server, address = silent_port()
    with server:
        check_endpoints({"runner": "apache_beam.runners.FlinkRunner", "flink_master": address})


@pytest.mark.parametrize(
    "values",
    [
        {"runner": None},
        {"runner": "PortableRunner", "job_endpoint": "embed"},
        {"runner": "FlinkRunner", "flink_master": "[auto]"},
        {"runner": "FlinkRunner"},
        {"runner": "SparkRunner"},
        {"runner": "SparkRunner", "spark_submit_uber_jar": True, "spark_rest_url": "http://127.0.0.1:9"},
        {"runner": "DirectRunner", "job_endpoint": "127.0.0.1:9"},
    ],
)
def test_runners_without_an_endpoint_pass(values):
    check_endpoints(values)
