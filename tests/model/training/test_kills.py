"""A run whose process is killed, at any moment and any number of times, goes on to the same files, byte for byte."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support.kills import KINDS
from tests.support.runs import ROOT, TINY, run_main
from tests.support.stops import outputs

# by epochs, and by the clock: after every step, and after several
INTERVALS = ("1", "2", "0.00001min", "0.0005min")
IN_A_ROW = 4
# the program's own way out: none of these may be needed to go on
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


class Zygote:
    """Runs of the program, each in a process of its own."""

    def __init__(self):
        command = [sys.executable, "-m", "tests.support.zygote"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)
        assert self._answer() == "ready"

    def _answer(self) -> str:
        return self.process.stdout.readline().strip()

    def run(self, folder: Path, kind: str, **request) -> dict:
        """Run until the end or what ends it: `code` (minus the signal) and processor `seconds`."""
        values = {**KINDS[kind], **request.pop("values", {})}
        print(json.dumps({"folder": str(folder), "values": values, **request}), file=self.process.stdin, flush=True)
        return json.loads(self._answer())

    def finish(self, folder: Path, kind: str) -> None:
        """Resume, which must succeed."""
        ended = self.run(folder, kind, values={"resume": True})
        assert ended["code"] == 0, Path(f"{folder}.log").read_text()[-3000:]


@pytest.fixture(scope="module")
def zygote():
    parent = Zygote()
    yield parent
    parent.process.stdin.close()
    assert parent.process.wait(30) == 0


@pytest.fixture(scope="module")
def whole(zygote, tmp_path_factory):
    """A function: kind of run -> what a run that nothing cut off leaves, and the processor seconds it takes."""
    known = {}

    def result(kind):
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            ended = zygote.run(folder, kind)
            assert ended["code"] == 0, Path(f"{folder}.log").read_text()
            known[kind] = left(folder), ended["seconds"]
        return known[kind]

    return result


def left(folder: Path) -> dict:
    """Result files as bytes, and the weights of the checkpoint."""
    content = torch.load(folder / "run" / "checkpoint.pt", weights_only=True)
    weights = {name: value.numpy().tobytes() for name, value in content["backbone"].items()}
    return {**outputs(folder), "epoch": content["epoch"], "weights": weights}


def check(folder: Path, expected: dict) -> None:
    """The finished run in `folder` has left what was `expected`, and nothing that is not its result."""
    assert left(folder) == expected
    assert not [path.name for path in (folder / "run").iterdir() if path.name == "state.pt" or ".tmp" in path.name]


def kill_and_resume(zygote, tmp_path, whole, kind, kills, seed):
    """End runs at random moments of their lives until `kills` signals have met a living process; give their number."""
    expected, life = whole(kind)
    rng, met, turn = random.Random(f"{kind} {seed}"), 0, 0
    while met < kills:
        folder = tmp_path / f"{kind} {turn}"
        folder.mkdir()
        for _ in range(rng.randint(1, IN_A_ROW)):
            values = {"resume": True, "checkpoint_every": rng.choice(INTERVALS)}
            number = rng.choice(SIGNALS)
            ended = zygote.run(folder, kind, values=values, seconds=rng.uniform(0, life), signal=number)
            if ended["code"] == 0:
                break
            # SIGTERM and SIGINT have Python's own meaning until training begins
            assert ended["code"] in (-number, 128 + number), Path(f"{folder}.log").read_text()[-3000:]
            met += 1
        zygote.finish(folder, kind)
        check(folder, expected)
        turn += 1


# the others are among the very many moments
@pytest.mark.parametrize("kind", ["none", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("mean", "compat"))])
def test_a_run_killed_at_random_moments_goes_on_to_the_same_bytes(zygote, tmp_path, whole, kind):
    kill_and_resume(zygote, tmp_path, whole, kind, 2, "default")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_very_many_random_moments_goes_on_to_the_same_bytes(zygote, tmp_path, whole, kind):
    kill_and_resume(zygote, tmp_path, whole, kind, 80, "slow")


# kind, function, number of the call, place in it, and what the folder holds then
PLACES = [
    # a state half-written, the second checkpoint, a state in place and nothing after it
    ("mean", "torch.save", 2, "half", {"checkpoint.pt", ".state.pt.tmp"}),
    ("mean", "torch.save", 3, "half", {"checkpoint.pt", "state.pt", ".checkpoint.pt.tmp"}),
    ("mean", "model.modes.train.write_state", 1, "after", {"checkpoint.pt", "state.pt"}),
    # validation
    ("compat", "model.modes.train.Evaluator.rank", 1, "after", {"config.json"}),
    # between the files of the results, and after the last one
    ("none", "model.results.writer.write_frame", 1, "after", {"items.parquet", "state.pt"}),
    ("none", "model.modes.train.write_results", 1, "after", {"result.json", "state.pt"}),
]
MORE_PLACES = [
    ("mean", "torch.save", 1, "half", {".checkpoint.pt.tmp"}),
    ("compat", "torch.save", 3, "half", {"checkpoint.pt", "state.pt", ".checkpoint.pt.tmp"}),
    ("none", "os.replace", 4, "before", {"checkpoint.pt", ".state.pt.tmp"}),
    ("gru", "model.modes.train.Evaluator.rank", 2, "before", {"state.pt"}),
    ("none", "model.modes.train.Evaluator.rank", 3, "before", {"state.pt"}),
    ("none", "model.modes.train.append_jsonl", 2, "after", {"state.pt"}),
    ("none", "model.results.writer.write_per_user", 1, "after", {"per_user.parquet", "state.pt"}),
    ("none", "model.results.writer._write_cost", 1, "after", {"cost.json", "state.pt"}),
]


@pytest.mark.parametrize(
    ("kind", "name", "number", "when", "held"),
    [*PLACES, *(pytest.param(*place, marks=pytest.mark.slow) for place in MORE_PLACES)],
    ids=lambda value: "" if isinstance(value, set) else str(value),
)
def test_a_run_killed_at_a_known_place_goes_on_to_the_same_bytes(
    zygote, tmp_path, whole, kind, name, number, when, held
):
    ended = zygote.run(tmp_path, kind, at=[name, number, when])
    assert ended["code"] == -signal.SIGKILL
    names = {path.name for path in (tmp_path / "run").iterdir()}
    # a temporary name has a part of its own, so that two writers never share one
    assert held <= {re.sub(r"\.[0-9a-f]{16}\.tmp$", ".tmp", name) for name in names}
    zygote.finish(tmp_path, kind)
    check(tmp_path, whole(kind)[0])


def test_a_half_written_state_leaves_the_one_before_it_in_force(zygote, tmp_path, whole):
    state = tmp_path / "run" / "state.pt"
    zygote.run(tmp_path, "mean", at=["torch.save", 3, "half"], values={"checkpoint_every": "0.00001min"})
    before = state.read_bytes()
    # the next process dies while it writes over what the first one left
    zygote.run(tmp_path, "mean", at=["torch.save", 1, "half"], values={"resume": True})
    assert state.read_bytes() == before
    zygote.finish(tmp_path, "mean")
    check(tmp_path, whole("mean")[0])


@pytest.mark.slow
@pytest.mark.probes
def test_a_command_line_ended_by_a_signal_says_how_to_go_on_and_that_works(tmp_path):
    values = {**TINY, "epochs": 12, "patience": 12}
    del values["run_name"]
    shown = {name: ",".join(value) if isinstance(value, list) else value for name, value in values.items()}
    command = [sys.executable, str(ROOT / "main.py"), *(f"--{name}={value}" for name, value in shown.items())]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options["env"] = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    # a folder name that a shell would take apart, and a run that has no name yet
    folder = tmp_path / "it's here"
    process = subprocess.Popen([*command, f"--output_dir={folder}"], **options)
    next(line for line in process.stdout if line.startswith("epoch"))
    time.sleep(random.Random(0).uniform(0.0, 0.1))
    process.terminate()
    error = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + signal.SIGTERM
    said, _, pasted = error.partition(": ")
    assert said == "stopped by SIGTERM; this goes on from here" and error.count("\n") == 1
    done = subprocess.run(["sh", "-c", pasted], timeout=300, **options)
    assert done.returncode == 0 and "resumed in epoch" in done.stdout, done.stderr
    (run,) = folder.iterdir()
    run.rename(folder / "run")
    run_main(tmp_path, **values)
    assert outputs(folder) == outputs(tmp_path)
