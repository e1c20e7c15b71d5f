"""W&B logging: off by default, never in the way, and really written in offline mode."""

import builtins
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from model.results import tracking
from model.results.epoch_plots import training_curves
from model.results.pages import write_page
from model.results.text_table import Table
from model.results.tracking import Tracker
from tests.support.runs import TINY

ROOT = Path(__file__).parents[3]


class FakeRun:
    """Stands in for a wandb run; fails in the named method."""

    def __init__(self, failing=None):
        self.failing, self.rows, self.summary, self.exit_code = failing, [], {}, None
        self.dir = "somewhere"

    def log(self, row, step=None):
        if self.failing == "log":
            raise ConnectionError("no network\nat all")
        self.rows.append((row, step))

    def finish(self, exit_code=None):
        if self.failing == "finish":
            raise TimeoutError
        self.exit_code = exit_code


@pytest.fixture
def warnings_given(capsys):
    """A function: the lines on standard error so far."""
    return lambda: capsys.readouterr().err.splitlines()


def make_tracker(monkeypatch, run):
    import wandb

    monkeypatch.setattr(wandb, "init", lambda **settings: run)
    return Tracker("offline", "project", "name", {"lr": 0.1}, "unused")


def test_a_run_is_gone_on_with_by_its_id(monkeypatch, make_config, tmp_path):
    import wandb

    asked = []
    monkeypatch.setattr(wandb, "init", lambda **settings: asked.append(settings) or FakeRun())
    config = make_config(wandb_mode="offline")
    assert Tracker.of(config, tmp_path).active and Tracker.of(config, tmp_path, "abc").active
    assert not Tracker.of(config, tmp_path, "abc", active=False).active
    first, second = asked
    assert "id" not in first and (second["id"], second["resume"]) == ("abc", "allow")
    shared = {"project": "test", "name": "test", "group": "synthetic-fabuhs-mean", "dir": str(tmp_path)}
    shared |= {"job_type": "seed 0"}
    assert all(settings[name] == value for settings in asked for name, value in shared.items())


def block_import(monkeypatch):
    plain_import = builtins.__import__

    def refuse(name, *rest, **options):
        if name == "wandb":
            raise ImportError("No module named 'wandb'")
        return plain_import(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_disabled_never_imports_wandb(monkeypatch, warnings_given, tmp_path):
    block_import(monkeypatch)
    tracker = Tracker("disabled", "project", "name", {}, tmp_path)
    tracker.log({"loss": 1.0}, 0)
    tracker.finish({"test/ndcg@10": 0.1}, {"curve": tmp_path / "none.png"})
    assert not tracker.active and not warnings_given() and not list(tmp_path.iterdir())


def test_missing_package_is_one_warning(monkeypatch, warnings_given, tmp_path):
    block_import(monkeypatch)
    tracker = Tracker("online", "project", "name", {}, tmp_path)
    tracker.log({"loss": 1.0}, 0)
    tracker.finish({}, {})
    (warning,) = warnings_given()
    assert "No module named 'wandb'" in warning


def test_online_without_a_key_warns_and_never_prompts(monkeypatch, warnings_given, tmp_path):
    import wandb

    asked = {}
    monkeypatch.setattr(wandb, "login", lambda **options: asked.update(options) or False)
    monkeypatch.setattr(wandb, "init", lambda **settings: pytest.fail("must not start"))
    tracker = Tracker("online", "project", "name", {}, tmp_path)
    assert asked["prompt"] is False and asked["verify"] is False
    (warning,) = warnings_given()
    assert not tracker.active and "wandb login" in warning


@pytest.mark.parametrize("failing", ["log", "finish"])
def test_a_failure_is_one_warning_and_the_run_goes_on(monkeypatch, warnings_given, failing):
    run = FakeRun(failing)
    tracker = make_tracker(monkeypatch, run)
    tracker.log({"loss": 1.0}, 0)
    tracker.log({"loss": 0.5}, 1)
    tracker.finish({"test/ndcg@10": 0.1})
    tracker.finish({"test/ndcg@10": 0.1})
    (warning,) = warnings_given()
    assert not tracker.active and f"failed to {failing}" in warning


def test_a_missing_picture_is_one_warning(monkeypatch, warnings_given, tmp_path):
    make_tracker(monkeypatch, FakeRun()).finish({}, {"curve": tmp_path / "none.png"})
    assert len(warnings_given()) == 1


def test_numbers_only_and_no_nan(monkeypatch, warnings_given):
    run = FakeRun()
    tracker = make_tracker(monkeypatch, run)
    tracker.log({"epoch": 1, "loss": 0.5, "undefined": float("nan"), "name": "text", "missing": None}, 7)
    tracker.finish({"test/hr@10": 0.2, "test/hr@10/tail": float("nan")}, exit_code=1)
    assert run.rows == [({"epoch": 1.0, "loss": 0.5}, 7)]
    assert run.summary == {"test/hr@10": 0.2} and run.exit_code == 1 and not warnings_given()


def test_unknown_mode_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="disabled, offline, online"):
        Tracker("on", "project", "name", {}, tmp_path)


def test_pictures_report_and_tables_are_logged_once_at_the_end(monkeypatch, warnings_given, tmp_path):
    import wandb

    made = []
    for kind in ("Image", "Html", "Table"):
        monkeypatch.setattr(wandb, kind, lambda *values, kind=kind, **named: made.append((kind, values, named)) or kind)
    run = FakeRun()
    tables = [Table("Accuracy, in percent", ["", "overall"], [["HR@10", "1.25"]]), Table("Other", ["a"], [["b"]])]
    images = {"exposure": tmp_path / "exposure.png", "report": tmp_path / "report.html"}
    make_tracker(monkeypatch, run).finish({"test/ndcg@10": 0.1}, images, tables)
    assert run.rows == [({"exposure": "Image", "report": "Html", "Accuracy": "Table", "Other": "Table"}, None)]
    assert made == [
        ("Image", (str(tmp_path / "exposure.png"),), {}),
        ("Html", (str(tmp_path / "report.html"),), {"inject": False}),
        ("Table", (), {"columns": ["metric", "overall"], "data": [["HR@10", "1.25"]]}),
        ("Table", (), {"columns": ["a"], "data": [["b"]]}),
    ]
    assert run.exit_code == 0 and not warnings_given()


@pytest.mark.parametrize("hanging", ["start", "log", "finish"])
def test_a_call_that_never_returns_is_one_warning_and_the_run_goes_on(monkeypatch, warnings_given, hanging):
    import wandb

    monkeypatch.setattr(tracking, "LIMIT_SECONDS", dict.fromkeys(tracking.LIMIT_SECONDS, 0.2))
    ended, for_ever = [], threading.Event()
    monkeypatch.setattr(tracking, "_end_service", lambda: ended.append(True))
    run = FakeRun()
    if hanging == "start":
        monkeypatch.setattr(wandb, "init", lambda **settings: for_ever.wait() and run)
        tracker = Tracker("offline", "project", "name", {}, "unused")
    else:
        tracker = make_tracker(monkeypatch, run)
        monkeypatch.setattr(run, hanging, lambda *arguments, **options: for_ever.wait())
    tracker.log({"loss": 1.0}, 0)
    tracker.finish({"test/ndcg@10": 0.1})
    # what answers after all is too late
    for_ever.set()
    assert not tracker.active and tracker.id is None and ended == [True]
    (warning,) = warnings_given()
    assert warning == f"warning: W&B is off for the rest of this run: it failed to {hanging} (no answer in 0.2 s)"


def private(folder):
    """Environment of a user who has never logged in."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    names = ("HOME", "NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
    return {**kept, **{name: str(folder / "home") for name in names}, "OMP_NUM_THREADS": "1"}


def tracked(folder, script="", **environment):
    """Run `main.py` with online tracking in a process of its own, after `script`; standard error."""
    values = {**TINY, "output_dir": folder, "wandb_mode": "online"}
    shown = {name: ",".join(value) if isinstance(value, list) else value for name, value in values.items()}
    flags = ["main.py", *(f"--{name}={value}" for name, value in shown.items())]
    code = (
        f"import sys, main, model.results.tracking as tracking\n{script}\nmain.app.run(main.main, {flags}, main.parse)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**private(folder), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "run" / "result.json").exists()
    return done.stderr


KEY = "0123456789" * 4
UNREACHABLE = {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}


@pytest.mark.slow
def test_a_run_without_a_key_is_neither_asked_nor_held_up(tmp_path):
    (warning,) = tracked(tmp_path).splitlines()
    assert "no API key is configured" in warning


@pytest.mark.slow
def test_a_run_whose_service_cannot_be_reached_goes_on_after_a_bounded_wait(tmp_path):
    script = "tracking.INIT_TIMEOUT_SECONDS = 2"
    (warning,) = tracked(tmp_path, script, **UNREACHABLE).splitlines()
    assert "failed to start" in warning


@pytest.mark.slow
def test_the_wait_for_a_service_that_cannot_be_reached_is_as_long_as_said(tmp_path):
    began = "import time, atexit; start = tracking._start\ndef timed(*a):\n  t = time.monotonic()\n"
    began += "  try: return start(*a)\n  finally: print('waited', time.monotonic() - t, file=sys.stderr)\n"
    error = tracked(tmp_path, began + "tracking._start = timed", **UNREACHABLE)
    (waited,) = [float(line.split()[1]) for line in error.splitlines() if line.startswith("waited")]
    assert waited < tracking.LIMIT_SECONDS["start"] and "failed to start" in error


@pytest.mark.slow
def test_a_frozen_service_holds_up_neither_training_nor_the_exit(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from model.results import tracking\n"
        "from wandb.sdk import wandb_setup\n"
        "tracking.LIMIT_SECONDS['finish'] = 3\n"
        "tracker = tracking.Tracker('offline', 'fabuhs', 'name', {}, sys.argv[1])\n"
        "os.kill(wandb_setup.singleton()._connection._proc._process.pid, signal.SIGSTOP)\n"
        "for step in range(20): tracker.log({'loss': 0.5}, step)\n"
        "assert tracker.active\n"
        "tracker.finish({'test/ndcg@10': 0.05})\n"
        "sys.exit(7)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=private(tmp_path), capture_output=True, text=True, timeout=100)
    assert done.returncode == 7
    (warning,) = done.stderr.splitlines()
    assert "failed to finish (no answer in 3 s)" in warning


@pytest.mark.slow
def test_offline_writes_a_run_and_leaves_at_exit(tmp_path):
    # A process of its own shows that wandb's background service neither hangs the exit nor outlives it.
    script = (
        "from model.results.text_table import Table\n"
        "from model.results.tracking import Tracker\n"
        "import sys\n"
        "tracker = Tracker('offline', 'fabuhs', 'name', {'lr': 0.1}, sys.argv[1], group='g')\n"
        "assert tracker.active\n"
        "tracker.log({'loss': 0.5, 'undefined': float('nan')}, 0)\n"
        "table = Table('Accuracy, in percent', ['', 'overall'], [['HR@10', '1.25']])\n"
        "tracker.finish({'test/ndcg@10': 0.05}, {'curve': sys.argv[2], 'report': sys.argv[3]}, [table])\n"
    )
    picture, page = tmp_path / "curve.png", tmp_path / "report.html"
    write_page(page, "Title", "main.py", [])

    training_curves([{"epoch": 1, "train/loss": 1.0, "valid/ndcg@10": 0.1}], picture.with_suffix(""))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), str(picture), str(page)],
        cwd=ROOT,
        env=private(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "W&B is off" not in done.stderr
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert next(folder.glob("run-*.wandb")).stat().st_size > 500
    assert list(folder.glob("files/media/images/curve*.png"))
    assert list(folder.glob("files/media/html/report*.html"))
    assert list(folder.glob("files/media/table/Accuracy*.table.json"))
