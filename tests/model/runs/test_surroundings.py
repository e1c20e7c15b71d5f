"""What surrounds a run -- console, environment variables, folders, git -- neither ends it nor gives a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pooch
import pytest
from filelock import FileLock

import main
from data.files import atomic_path, remove_unfinished
from data.messages import counted, warn, without_warnings
from model.results import writer
from model.runs import files
from model.runs.processes import ALONE, joined
from model.runs.surroundings import TORCHRUN, _lenient, torchrun_ranks
from tests.support import light_main
from tests.support.raw_files import movielens_bytes, write
from tests.support.runs import FLAGS, ROOT, TINY, refused, run_main

UNSET = {name: FLAGS[name].default for name in TINY if name.startswith("synthetic_")}

FULL = {"RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}


@pytest.fixture
def environment(monkeypatch):
    """A function: the environment with these of torchrun's variables and no other."""

    def set_to(values):
        for name in TORCHRUN:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_to


# Environment variables


@pytest.mark.parametrize(
    "left",
    [
        {"WORLD_SIZE": "2"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        {"RANK": "abc"},
        {**FULL, "WORLD_SIZE": "two"},
        {**FULL, "RANK": "-1"},
        {**FULL, "LOCAL_RANK": ""},
        {**FULL, "RANK": "2"},
        {name: value for name, value in FULL.items() if name != "MASTER_PORT"},
    ],
)
def test_a_part_of_what_torchrun_sets_is_named_and_ignored(environment, capsys, tmp_path, left):
    environment(left)
    assert torchrun_ranks() is None
    with joined("cpu") as processes:
        assert processes is ALONE
    (warning,) = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and all(f"{name}={value}" in warning for name, value in left.items())


def test_what_torchrun_sets_is_read(environment, capsys):
    environment(FULL)
    assert torchrun_ranks() == {"RANK": 1, "LOCAL_RANK": 0, "WORLD_SIZE": 2}
    environment({})
    with joined("cpu") as processes:
        assert processes is ALONE
    environment({**FULL, "RANK": "0", "WORLD_SIZE": "1"})
    with joined("cpu") as processes:
        assert processes is ALONE
    assert capsys.readouterr().err == ""


def test_a_dry_run_bears_what_another_program_left(environment, tmp_path, capsys):
    environment({"RANK": "x", "WORLD_SIZE": "2"})
    with pytest.raises(FileNotFoundError):  # there is no result
        run_main(tmp_path, dry_run=True)
    assert "an epoch" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("values", [{"GIT_DIR": "/nowhere", "GIT_WORK_TREE": "/nowhere"}, {"PATH": "/nowhere"}])
def test_the_commit_is_this_programs_or_none(monkeypatch, values):
    own = writer.program_commit()
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    assert writer.program_commit() == (None if "PATH" in values else own)


def test_a_git_that_hangs_costs_a_moment_and_no_run(tmp_path, monkeypatch):
    git = tmp_path / "git"
    git.write_text("#!/bin/sh\nexec sleep 60\n")
    git.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    started = time.monotonic()
    assert writer.program_commit(wait=0.1) is None
    assert time.monotonic() - started < 30


# Folders


@pytest.mark.parametrize("dataset", ["ml", "bx", "modcloth"])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_data_folder_that_is_not_there_is_an_error_and_stays_away(tmp_path, capsys, monkeypatch, dataset, dry_run):
    monkeypatch.setattr(pooch, "retrieve", lambda *arguments, **options: pytest.fail("downloaded"))
    place = {"dataset": dataset, "dataset_dir": str(tmp_path / "nope"), "cache_dir": str(tmp_path / "cache")}
    error = refused(capsys, tmp_path, **place, **UNSET, title_encoder="hash", dry_run=dry_run)
    assert "nope" in error and "--dataset_dir" in error
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_made_for_a_download_but_not_by_a_dry_run(tmp_path, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise ConnectionError("no route")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pooch, "retrieve", fail)
    values = {"dataset": "ml", **UNSET, "title_encoder": "hash", "cache_dir": str(tmp_path / "cache")}
    assert "ml-1m is missing; pass" in refused(capsys, tmp_path / "runs", **values, dry_run=True)
    assert list(tmp_path.iterdir()) == []
    assert "could not be downloaded" in refused(capsys, tmp_path / "runs", **values)
    assert [path.name for path in tmp_path.iterdir()] == ["datasets"]


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(write(tmp_path, movielens_bytes()))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileNotFoundError):  # there is no result
        run_main(tmp_path / "runs", dry_run=True, cache_dir="cache")
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_home_folder_a_path_with_a_tilde_is_refused(tmp_path, capsys, monkeypatch):
    def fail(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fail)
    assert "Pass a path without ~" in refused(capsys, tmp_path, cache_dir="~/cache")


# The console


def test_what_the_console_cannot_show_becomes_a_question_mark(tmp_path):
    with open(tmp_path / "out", "w", encoding="latin-1") as strict:
        print("NDCG@10 \u2191 \u2013 é", file=_lenient(strict), flush=True)
    assert (tmp_path / "out").read_bytes() == b"NDCG@10 ? ? \xe9\n"


def test_a_reader_that_has_gone_and_a_full_disk_are_no_errors():
    reading, writing = os.pipe()
    os.close(reading)
    for target in (writing, "/dev/full"):
        with open(target, "w") as strict:
            print("x" * 100_000, file=_lenient(strict), flush=True)
    print("nowhere", file=_lenient(None))


ARGUMENTS = [f"--{name}={','.join(value) if isinstance(value, list) else value}" for name, value in TINY.items()]


@pytest.mark.parametrize(
    "program", [light_main, pytest.param(main, marks=pytest.mark.slow)], ids=["light", "with pictures and probes"]
)
def test_a_run_ends_well_without_a_reader_and_with_an_old_encoding(tmp_path, program):
    """One process: standard output is a pipe that nobody reads, standard error is ASCII."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    rc = str(tmp_path / "matplotlibrc")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, program.__file__, *ARGUMENTS, f"--output_dir={tmp_path}", "--epochs=1"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "PYTHONIOENCODING": "ascii",
            "WORLD_SIZE": "many",
            "MPLBACKEND": "nonsense",
            "MATPLOTLIBRC": rc,
        },
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    os.close(writing)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "run" / "result.json").exists() and (tmp_path / "run" / "report.html").exists()


# Messages


def test_warnings_are_one_line_each_and_can_be_silenced(capsys):
    warn("something\n odd")
    with without_warnings():
        warn("not shown")
    warn("more")
    assert capsys.readouterr().err == "warning: something odd\nwarning: more\n"
    assert [counted(count, "row") for count in (0, 1, 2000)] == ["0 rows", "1 row", "2,000 rows"]


# Files


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "lists.csv"
    with atomic_path(path) as first, atomic_path(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first" and os.listdir(tmp_path) == ["lists.csv"]


def test_whoever_owns_a_folder_removes_what_killed_writers_left(tmp_path):
    killed = atomic_path(tmp_path / "state.pt").__enter__()
    killed.write_text("half")
    (tmp_path / "result.json").write_text("{}")
    assert killed.name in os.listdir(tmp_path)
    with files.lock_run_dir(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [".lock", "result.json"]
    remove_unfinished(tmp_path)
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_lock_holds_and_ends_with_its_process(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from filelock import FileLock\n"
        "lock = FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, tmp_path / ".lock"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="in use by another process"), files.lock_run_dir(tmp_path):
        pytest.fail("two owners")
    holder.kill()
    holder.wait()
    with files.lock_run_dir(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_a_lock_on_a_file_that_its_holder_removed_does_not_count(tmp_path):
    """Whoever waited for the removed file would hold nothing; the next one gets a file of its own."""
    with files.lock_run_dir(tmp_path):
        (tmp_path / ".lock").unlink()
        other = FileLock(tmp_path / ".lock", blocking=False)
        with other:
            assert (tmp_path / ".lock").exists()
    with files.lock_run_dir(tmp_path), pytest.raises(ValueError, match="in use"), files.lock_run_dir(tmp_path):
        pytest.fail("two locks")
