"""Ray's dashboard with orch's runs on it, and what a Prometheus scrapes: on a real cluster."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from orch_home import OrchHome, until

pytestmark = pytest.mark.ray


def get(url: str, token: Path | None = None) -> str:
    """The answer's body. Raises HTTPError."""
    headers = {} if token is None else {"Authorization": f"Bearer {token.read_text().strip()}"}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
        return answer.read().decode()


def dashboard(home: OrchHome, path: str) -> Any:
    note = home.home.read_cluster()
    assert note is not None
    text = get(f"{note.dashboard_url}{path}", home.root / "ray_token")
    return text if "/logs/file" in path or path.startswith("/orch/") else json.loads(text)


def test_the_jobs_page_has_runs_with_state_and_message_and_their_logs(home: OrchHome, job: Any) -> None:
    good = home.submit(job("print('well')", name="well", workers=2), "--wait")
    bad = home.submit(job("raise SystemExit('no luck')", name="bad"), "--wait", code=1)
    listed = {row["submission_id"]: row for row in dashboard(home, "/api/jobs/") if row["submission_id"]}
    assert listed[f"orch-{good}"]["status"] == "SUCCEEDED"
    assert listed[f"orch-{good}"]["metadata"]["job_name"] == "well"
    row = listed[f"orch-{bad}"]
    assert (row["status"], row["error_type"]) == ("FAILED", "exit")
    assert "no luck" in row["message"]
    assert row["end_time"] >= row["start_time"]
    assert dashboard(home, f"/api/jobs/orch-{good}/logs")["logs"].splitlines() == ["[rank 0] well", "[rank 1] well"]
    assert listed[f"orch-{bad}"]["metadata"]["report"] == f"/orch/runs/{bad}"
    page = dashboard(home, f"/orch/runs/{bad}")
    assert page.startswith("<!DOCTYPE html>")
    assert "no luck" in page
    asked = f"/api/v0/logs/file?node_id=orch&filename=job-driver-orch-{bad}.log&lines=1000"
    assert dashboard(home, asked) == "[rank 0] no luck"


def test_what_is_not_orchs_ray_answers_itself(home: OrchHome, job: Any) -> None:
    home.submit(job("print()"), "--wait")
    assert dashboard(home, "/api/version")["ray_version"]
    drivers = [row for row in dashboard(home, "/api/jobs/") if row["type"] == "DRIVER"]
    assert drivers, "Ray's own jobs are listed beside orch's"
    for path in ("/api/jobs/orch-999999", "/api/jobs/another"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            dashboard(home, path)
        assert refused.value.code == 404


def test_the_dashboard_answers_while_the_controller_is_away(home: OrchHome, job: Any) -> None:
    run = home.submit(job("print()"), "--wait")
    home.crash(home.controller())
    assert dashboard(home, "/api/version")["ray_version"]
    until(lambda: home("status", code=None).returncode == 0, 30, "a new controller")
    found = until(
        lambda: [r for r in dashboard(home, "/api/jobs/") if r["submission_id"] == f"orch-{run}"], 30, "the run"
    )
    assert found[0]["status"] == "SUCCEEDED"


def test_nobody_without_rays_token_reads_runs_past_the_dashboard(home: OrchHome, job: Any) -> None:
    home.submit(job("print()"), "--wait")
    note = home.home.read_cluster()
    assert note is not None
    for address in (note.dashboard_url, f"http://127.0.0.1:{note.dashboard_proxy}"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(f"{address}/api/jobs/")
        assert refused.value.code == 401


def test_the_metrics_token_opens_the_metrics_and_nothing_else(home: OrchHome, job: Any) -> None:
    home.submit(job("print()"), "--wait")
    url = home.json("status")["api_url"]
    token = home.root / "metrics_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert "orch_node_up" in get(f"{url}/metrics", token)
    for path, given in (("/metrics", None), ("/api/v1/status", token)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(url + path, given)
        assert refused.value.code == 401


@pytest.mark.skipif(not shutil.which("promtool"), reason="needs Prometheus's promtool (Debian: prometheus)")
def test_prometheus_takes_the_metrics_and_the_configuration(home: OrchHome, job: Any) -> None:
    home.submit(job("print()"), "--wait")
    url = home.json("status")["api_url"]
    text = get(f"{url}/metrics", home.root / "metrics_token")
    subprocess.run(["promtool", "check", "metrics"], input=text, text=True, check=True)
    config = home.home.monitoring / "prometheus.yml"
    subprocess.run(["promtool", "check", "config", str(config)], check=True)
    (files,) = (
        job["file_sd_configs"][0]["files"]
        for job in yaml.safe_load(config.read_text())["scrape_configs"]
        if job["job_name"] == "ray"
    )
    assert json.loads(Path(files[0]).read_text())[0]["targets"], "Ray lists its exporters in the file that is named"


def test_rays_own_exporter_has_orchs_totals_where_prometheus_is_told_to_look(
    home: OrchHome, waiting_job: Callable[..., Path], gate: Path
) -> None:
    run = home.submit(waiting_job(workers=2))
    config = yaml.safe_load((home.home.monitoring / "prometheus.yml").read_text())
    (found,) = (job["file_sd_configs"] for job in config["scrape_configs"] if job["job_name"] == "ray")
    (listed,) = found[0]["files"]

    def totals() -> dict[tuple[str, str], float]:
        """By metric and by its word for the use or state: what the exporters in Ray's list say."""
        said = {}
        for target in (target for one in json.loads(Path(listed).read_text()) for target in one["targets"]):
            for line in get(f"http://{target}/metrics").splitlines():
                if words := re.match(r"(ray_orch_\w+)\{.*\b(?:use|state)=\"(\w+)\".*\} (\S+)", line):
                    said[words[1], words[2]] = float(words[3])
        return said

    try:
        until(lambda: totals().get(("ray_orch_runs", "running")) == 1, 45, "Ray's exporter tells of the run")
        assert {state for name, state in totals() if name == "ray_orch_runs"} == {
            "queued",
            "starting",
            "running",
            "stopping",
        }
        assert {name: value for name, value in totals().items() if name[0] == "ray_orch_gpus"} == {
            ("ray_orch_gpus", use): 0 for use in ("busy", "free", "unfit")
        }
    finally:
        gate.touch()
    home("logs", "-f", str(run))


@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs Prometheus (Debian: prometheus)")
def test_a_real_prometheus_scrapes_orch_and_ray(home: OrchHome, job: Any, tmp_path: Path) -> None:
    home.submit(job("print()"), "--wait")
    config = tmp_path / "prometheus.yml"
    config.write_text((home.home.monitoring / "prometheus.yml").read_text().replace("15s", "1s"))
    quick = home.home.monitoring / "quick.yml"  # its paths are relative to where it lies
    quick.write_text(config.read_text())
    listen = "127.0.0.1:19191"
    command = [
        "prometheus",
        f"--config.file={quick}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
    ]
    with subprocess.Popen(
        [*command, f"--web.listen-address={listen}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:

        def up() -> set[str]:
            try:
                answer = json.loads(get(f"http://{listen}/api/v1/query?query=up%3D%3D1"))
            except OSError:
                return set()
            return {one["metric"]["job"] for one in answer["data"]["result"]}

        try:
            until(lambda: up() >= {"orch", "ray"}, 30, "orch and Ray are scraped")
        finally:
            server.terminate()
            quick.unlink()
