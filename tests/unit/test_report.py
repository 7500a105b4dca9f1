"""orchestrator.report: nothing outside orch, a file inside, and cheap to import."""

import subprocess
import sys

import pytest

from orchestrator.control.rank_progress import look
from orchestrator.progress.telling import teller

HEAVY = ("torch", "ray", "pydantic", "sqlalchemy", "numpy", "asyncio")


def python(text, **env):
    command = [sys.executable, "-c", text]
    found = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60)
    return found.stdout.strip()


def test_importing_it_loads_nothing_heavy(tmp_path):
    text = "import orchestrator, sys; orchestrator.report(step=1, loss=2.0); print([n for n in %r if n in sys.modules])"
    assert python(text % (HEAVY,)) == "[]"
    assert python(text % (HEAVY,), ORCH_PROGRESS=str(tmp_path / "p")) == "[]"
    assert look(tmp_path / "p", 1, 1, 0).metrics == {"loss": 2.0}


def test_outside_orch_it_does_nothing(monkeypatch):
    monkeypatch.delenv("ORCH_PROGRESS", raising=False)
    teller()(1, 2, {"loss": "no number at all"})


@pytest.fixture
def tell(tmp_path, monkeypatch):
    monkeypatch.setenv("ORCH_PROGRESS", str(tmp_path / "p"))
    return teller()


def seen(tmp_path):
    return look(tmp_path / "p", 1, 1, 0)


def test_samples_add_up_and_the_newest_values_stay(tell, tmp_path):
    tell(7, 32, {"loss": 3.0, "lr": 0.1})
    tell(8, 16.0, {"loss": 2.5})
    tell(None, None, {})
    found = seen(tmp_path)
    assert (found.reports, found.reported_samples, found.reported_step) == (3, 48, 8)
    assert found.metrics == {"loss": 2.5, "lr": 0.1}
    assert 0 < found.first_report_at <= found.report_at <= found.at


def test_what_cannot_be_kept_is_left_out(tell, tmp_path):
    tell(None, "many", {"loss": None, "ok": 1})
    tell(None, None, {f"name{i}": i for i in range(40)} | {"x" * 60: 1})
    found = seen(tmp_path)
    assert found.reports == 2
    assert len(found.metrics) == 16
    assert "loss" not in found.metrics


def test_two_processes_of_a_rank_share_its_names(tell, tmp_path):
    tell(None, None, {"loss": 1.0, "lr": 0.5})
    teller()(None, None, {"lr": 0.25})
    assert seen(tmp_path).metrics == {"loss": 1.0, "lr": 0.25}


def test_a_file_that_is_none_is_not_read(tmp_path):
    for content in (b"", b"x" * 100, b"x" * 8192):
        (tmp_path / "p").write_bytes(content)
        assert look(tmp_path / "p", 1, 1, 0) is None
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert look(tmp_path / "link", 1, 1, 0) is None
