"""`imagebeam report`'s page in a real browser: what a stranger wrote into names runs no script and fetches nothing."""

import contextlib
import csv
import html
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from pipelines.cli import run_job
from tests.support import plain_runs
from tests.support.image_samples import encode, picture

pytestmark = pytest.mark.slow

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

RUN = "document.title='owned'"
ATTACKS = (
    "<script>document.title='owned'</script>",
    "<script src=fetched-script.js></script>",
    f'"><img src=fetched-image onerror="{RUN}">',
    f"'><svg onload={RUN}>",
    f"<body onpageshow={RUN}>",
    f"<details open ontoggle={RUN}>",
    f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
    "<iframe src=fetched-frame></iframe>",
    "<link rel=stylesheet href=fetched-style>",
    "</style><style>body{background:url(fetched-background)}</style>",
    f"</title></table></ul><img src=data:, onerror={RUN}>",
)
REFRESH = "<meta http-equiv=refresh content='0;url=fetched-page'>"
"""No policy forbids it."""


class Site(http.server.SimpleHTTPRequestHandler):
    """The files of a folder; remembers what was asked for."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


def shown(folder: Path, name: str) -> tuple[str, list[str]]:
    """A page's title once all its scripts had time to run, and what was fetched."""
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM HERE: apt-get install chromium")
    asked: list[str] = []
    handler = type("Handler", (Site,), {"asked": asked})
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *args: handler(*args, directory=str(folder))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        dom = subprocess.run(
            [
                *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--no-first-run", "--disable-background-networking", f"--user-data-dir={folder / 'browser'}"),
                *("--virtual-time-budget=5000", "--dump-dom", f"http://127.0.0.1:{server.server_port}/{name}"),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        server.shutdown()
    title = re.search("<title>(.*?)</title>", dom, re.DOTALL)
    assert title, dom[:1000]
    return html.unescape(title[1]), [one for one in asked if one not in (f"/{name}", "/favicon.ico")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with its report: attacks in keys, labels, messages and in a classifier's metrics."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "sound.png").write_bytes(encode(picture(40, 50), "PNG"))
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    attacks = (*ATTACKS, REFRESH)
    with (folder / "in.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "uri", "label"])
        rows.writerows([f"{attack}{index}", "sound.png", attack] for index, attack in enumerate(attacks))
        rows.writerows([f"{attack} bad", "bad.png", attack] for attack in attacks)
        rows.writerows([f"{attack} gone", f"{attack.replace('/', '')}.png", attack] for attack in attacks)
    with plain_runs.plain(), contextlib.chdir(folder):
        assert plain_runs.extract([folder / "in.csv"], folder / "run") == 0
    (folder / "classifier").mkdir()
    mistakes = [{"key": one, "label": one, "predicted": one, "probability": 0.9} for one in attacks]
    metrics = {"confident_mistakes": mistakes, **dict.fromkeys(attacks, 1)}
    (folder / "classifier" / "metrics.json").write_text(json.dumps(metrics))
    assert run_job("report", [str(folder / "run"), "--classifier", str(folder / "classifier")]) == 0
    return folder / "run"


def test_report_runs_no_script_and_fetches_nothing(run: Path) -> None:
    page = (run / "report.html").read_text()
    for attack in (*ATTACKS, REFRESH):
        assert page.count(html.escape(attack)) >= 4  # key, label, message, metrics
    assert shown(run, "report.html") == ("Embeddings by VGG16", [])


def test_escaping_alone_stops_every_attack(run: Path) -> None:
    page = re.sub(r"<meta http-equiv=Content-Security-Policy [^>]*>", "", (run / "report.html").read_text())
    (run / "bare.html").write_text(page)
    assert shown(run, "bare.html") == ("Embeddings by VGG16", [])


def test_content_security_policy_alone_stops_every_attack(run: Path) -> None:
    page = (run / "report.html").read_text()
    (run / "raw.html").write_text(page.replace("</html>", "\n".join(ATTACKS)))
    assert shown(run, "raw.html") == ("Embeddings by VGG16", [])


def test_attacks_succeed_without_escaping_and_policy(run: Path) -> None:
    """The attacks are ones: else the tests above would show nothing."""
    for index, attack in enumerate(ATTACKS):
        (run / "open.html").write_text(f"<!doctype html><title>closed</title><p>{attack}")
        title, fetched = shown(run, "open.html")
        assert title == "owned" or fetched, f"attack {index}: {attack}"
