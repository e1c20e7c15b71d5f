"""Several seeds of one run: how the machine is shared out, what becomes of each process, what they give together."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from absl import flags
from absl.testing import flagsaver
from scipy import stats
from threadpoolctl import threadpool_limits

import main
from model.comparison.seeds_summary import Seeds, latex_summary
from model.modes import seeds, setup
from model.runs.files import write_json
from model.runs.processes import Processes
from tests.support import light_main
from tests.support.latex import compiled, needs_latex
from tests.support.pages import read_page
from tests.support.runs import ROOT, TINY, refused, without_commit

FLAGS = flags.FLAGS
OUTPUTS = ("result.json", "recommendations.parquet", "ranks.parquet", "per_user.parquet", "metrics.jsonl")

# stands in for a run: quick, and ends as SEEDS_TEST says
STUB = """
import json, os, pathlib, signal, sys, time
flags = dict(part[2:].split("=", 1) for part in sys.argv[1:])
seed, plan = flags["seed"], json.loads(os.environ["SEEDS_TEST"])
folder = pathlib.Path(flags["output_dir"], flags["run_name"])
folder.mkdir(exist_ok=True)
print("reading", flush=True)
print(f"epoch 1/2: loss 0.5, resume {flags.get('resume')}, threads {os.environ['OMP_NUM_THREADS']}", flush=True)
action = plan.get(seed, "finish")
if action == "wait" and flags.get("resume") != "True":
    def stop(number, frame):
        (folder / "state.pt").write_text("state")
        print("stopped", file=sys.stderr, flush=True)
        os._exit(128 + number)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    (folder / "ready").touch()
    time.sleep(60)
if action == "fail":
    print("Traceback\\nerror: the disk is full", file=sys.stderr)
    sys.exit(2)
if action == "die":
    os.kill(os.getpid(), signal.SIGKILL)
(folder / "config.json").write_text(os.environ["SEEDS_CONFIG"])
metrics = {"test/ndcg@5": 0.1 * int(seed), "test/dtr@5": None, "test/hr@5": 0.25}
result = {"dataset": "toy", "protocol": "loo", "description": "last item", "fingerprint": "f" + plan.get("data", ""),
          "method": "none", "seed": int(seed), "epoch": 1, "selected_by": "ndcg@5", "validation": 0.5}
(folder / "result.json").write_text(json.dumps(result | {"metrics": metrics}))
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A function: how each seed ends ("fail", "die", "wait") -> flags for runs by the stub, data the same for all."""
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    monkeypatch.setattr(seeds, "MAIN", script)
    monkeypatch.setattr(seeds, "_fingerprints", lambda work: (False, dict.fromkeys(work.seeds, "f")))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def flags_of(**endings):
        monkeypatch.setenv("SEEDS_TEST", json.dumps({name.removeprefix("seed"): end for name, end in endings.items()}))
        with flagsaver.flagsaver(**TINY):
            monkeypatch.setenv("SEEDS_CONFIG", json.dumps(main.settings_from_flags().config().as_json()))
        return {**TINY, "output_dir": str(tmp_path / "runs")}

    return flags_of


def run_seeds(values, **more):
    with flagsaver.flagsaver(**values, **more):
        main.main(["main.py"])


def test_the_command_gives_the_same_settings(tmp_path):
    values = {
        **TINY,
        "enable_fairness": True,
        "method_option": ["discriminator_widths=4,8", "discriminator_steps=2"],
        "user_attribute": ["gender", "age"],
        "sampling_softmax_temp": math.inf,
        "lr": 0.0025,
        "mask_sensitive_feature": False,
        "resume": True,
        "seeds": ["0", "7"],
        "output_dir": "~/some where",
        "wandb_mode": "offline",
        "wandb_project": "a=b, c",
    }
    with flagsaver.flagsaver(**values):
        settings = main.settings_from_flags()
        command = seeds.plan(settings).command(7)
    assert command[:2] == [sys.executable, str(Path(main.__file__))]
    with flagsaver.flagsaver():
        FLAGS(["main.py", *command[2:]])
        child = main.settings_from_flags()
    changed = {
        "seed": 7,
        "seeds": [],
        "output_dir": str(Path("~/some where").expanduser() / "run"),
        "run_name": "seed7",
    }
    assert dict(child.values) == dict(settings.values) | changed
    assert child.config().method_option == settings.config().method_option


@pytest.mark.parametrize(
    ("cores", "count", "asked", "at_once", "threads"),
    [
        (8, 3, None, 3, 2),
        (2, 3, None, 2, 1),
        (1, 2, None, 1, 1),
        (8, 3, "1", 3, 1),
        (8, 9, "3", 2, 3),
        (4, 2, "8", 1, 8),
    ],
)
def test_threads_times_processes_are_at_most_the_cores(monkeypatch, cores, count, asked, at_once, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    with flagsaver.flagsaver(**TINY, device="cpu", seeds=[str(seed) for seed in range(count)]):
        work = seeds.plan(main.settings_from_flags())
    assert (work.at_once, work.threads) == (at_once, threads)
    assert work.environment()["OMP_NUM_THREADS"] == str(threads)


def test_on_a_gpu_seeds_take_turns(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with flagsaver.flagsaver(**TINY, seeds=["0", "1", "2"]):
        work = seeds.plan(main.settings_from_flags())
    assert (work.at_once, work.threads) == (1, None)
    assert "OMP_NUM_THREADS" not in work.environment() and work.on_host(1).device == "cpu"


def test_the_mean_over_seeds_is_written_and_printed(tmp_path, stub, capsys):
    run_seeds(stub(), seeds=["1", "2", "4"])
    folder = tmp_path / "runs" / "run"
    names = {
        "seeds.json",
        "seeds.csv",
        "seeds.tex",
        "report.html",
        *(f"seed{s}{end}" for s in (1, 2, 4) for end in ("", ".log")),
    }
    assert {path.name for path in folder.iterdir()} == names
    content = json.loads((folder / "seeds.json").read_text())
    assert content["seeds"] == [1, 2, 4] and content["failed"] == {} and not content["drawn_by_seed"]
    found = content["metrics"]["test/ndcg@5"]
    # Student's t on the logit: HR, NDCG and MRR are between 0 and 1
    mean = 0.7 / 3
    half = stats.t(2).ppf(0.975) * 0.1527525 / math.sqrt(3) / (mean * (1 - mean))
    expected = [1 / (1 + math.exp(-(math.log(mean / (1 - mean)) + side * half))) for side in (-1, 1)]
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected), rel=1e-5)
    assert (found["count"], found["mean"], found["std"]) == pytest.approx((3, 0.7 / 3, 0.152752), abs=1e-6)
    assert content["metrics"]["test/dtr@5"] == {
        "count": 0, "mean": None, "std": None, "low": None, "high": None, "values": [None] * 3,
    }  # fmt: skip
    frame = pd.read_csv(folder / "seeds.csv").set_index("metric")
    assert frame.loc["test/ndcg@5", ["seed1", "seed2", "seed4"]].tolist() == pytest.approx([0.1, 0.2, 0.4])
    latex = (folder / "seeds.tex").read_text()
    assert rf"NDCG@5 & 23.33 & 15.28 & [{100 * expected[0]:.2f}, {100 * expected[1]:.2f}] & 3 \\" in latex
    assert r"\label{tab:run-1}" in latex and "test/dtr@5 & -- & -- & -- & 0" in latex
    page = read_page(folder / "report.html")
    assert str(folder / "seed2" / "report.html") in page.text
    assert "NDCG@5 is 23.33 % [" in page.text.replace("\N{NO-BREAK SPACE}", " ")
    text = capsys.readouterr().out
    assert max(len(line) for line in text.splitlines() if str(tmp_path) not in line) <= 80
    assert "seed 2  epoch 1/2: loss 0.5, resume None, threads 1" in text and "reading" not in text
    assert "fingerprint f" in text and "seeds 1, 2, 4" in text
    assert (folder / "seed1.log").read_text().startswith("reading\nepoch 1/2")


@needs_latex
def test_the_tables_of_seeds_compile(tmp_path):
    result = {"dataset": "a_b", "protocol": "loo", "description": "50 % & more", "method": "none", "fingerprint": "f"}
    metrics = {"test/ndcg@5": 0.5, "test/dp_rate@5/gender": 0.6, "test/dp_rate@5/chance/gender": 0.5}
    results = {
        seed: result | {"metrics": metrics | {"test/dp_rate@5/excess/gender": 0.1 * seed, "test/arp@5": seed}}
        for seed in (1, 2, 3)
    }
    content = latex_summary(Seeds(results, {}, False, 5), "my_seeds")
    # a table over many pages stands in one column
    assert "Overfull" not in compiled(content, tmp_path, columns=1)
    assert r"DP rate, gender & 0.600 & 0.000 & 0.500 & +0.200 & [-0.056, +0.431] & 3 \\" in content
    assert r"\label{tab:my-seeds-1}" in content


def test_one_seed_has_a_mean_and_no_spread(tmp_path, stub):
    run_seeds(stub(), seeds=["3"])
    found = json.loads((tmp_path / "runs" / "run" / "seeds.json").read_text())["metrics"]["test/hr@5"]
    assert found == {"count": 1, "mean": 0.25, "std": None, "low": None, "high": None, "values": [0.25]}


def test_seeds_that_fail_are_named_and_the_others_go_on(tmp_path, stub, capsys):
    error = refused(capsys, tmp_path / "runs", **seeds_of(stub(seed1="fail", seed2="die"), "0", "1", "2", "3"))
    assert "2 of 4 seeds failed (seed 1: the disk is full; seed 2: killed by SIGKILL, last line: epoch 1/2" in error
    content = json.loads((tmp_path / "runs" / "run" / "seeds.json").read_text())
    assert content["seeds"] == [0, 3] and content["failed"]["1"] == "the disk is full"
    # what has finished stays, and the others are tried again
    before = (tmp_path / "runs" / "run" / "seed0" / "result.json").stat().st_mtime_ns
    run_seeds(stub(), seeds=["0", "1", "2", "3"], resume=True)
    text = capsys.readouterr().out
    assert "seed 0  kept" in text and "seed 1  epoch 1/2: loss 0.5, resume True" in text
    assert json.loads((tmp_path / "runs" / "run" / "seeds.json").read_text())["seeds"] == [0, 1, 2, 3]
    assert (tmp_path / "runs" / "run" / "seed0" / "result.json").stat().st_mtime_ns == before


def seeds_of(values, *numbers):
    return {**{name: value for name, value in values.items() if name != "output_dir"}, "seeds": list(numbers)}


def test_nothing_is_summarised_when_all_fail(tmp_path, stub, capsys):
    error = refused(capsys, tmp_path / "runs", **seeds_of(stub(seed0="fail", seed1="fail"), "0", "1"))
    assert "2 of 2 seeds failed" in error
    assert not (tmp_path / "runs" / "run" / "seeds.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_seed_and_the_rest_is_not_begun(tmp_path, stub, capsys, monkeypatch, number):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    values = stub(seed0="wait", seed1="wait")
    folder = tmp_path / "runs" / "run"

    def strike():
        while not all((folder / f"seed{seed}" / "ready").exists() for seed in (0, 1)):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=strike, daemon=True).start()
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        run_seeds(values, seeds=["0", "1", "2"])
    assert caught.value.code == 128 + number and signal.getsignal(number) == before
    assert "--resume" in capsys.readouterr().err
    assert [(folder / f"seed{seed}" / "state.pt").exists() for seed in (0, 1)] == [True, True]
    assert not (folder / "seed2").exists() and not (folder / "seeds.json").exists()
    run_seeds(values, seeds=["0", "1", "2"], resume=True)
    assert json.loads((folder / "seeds.json").read_text())["seeds"] == [0, 1, 2]


def test_other_settings_or_data_than_the_finished_seeds_had_are_refused(tmp_path, stub, capsys):
    values = stub()
    run_seeds(values, seeds=["0", "1"])
    assert "seeds.json" in refused(capsys, tmp_path / "runs", **seeds_of(values, "0", "1"))
    (tmp_path / "runs" / "run" / "seeds.json").unlink()
    assert "already holds seed0, seed1" in refused(capsys, tmp_path / "runs", **seeds_of(values, "0", "1"))
    changed = seeds_of({**values, "lr": 0.5}, "0", "1", "2")
    assert "--lr was 0.001, is 0.5" in refused(capsys, tmp_path / "runs", **changed, resume=True)
    assert not (tmp_path / "runs" / "run" / "seed2").exists()
    path = tmp_path / "runs" / "run" / "seed1" / "result.json"
    write_json(path, json.loads(path.read_text()) | {"fingerprint": "other"})
    error = refused(capsys, tmp_path / "runs", **seeds_of(values, "0", "1"), resume=True)
    assert "fingerprint other" in error and "no mean over both" in error


def test_data_that_differ_between_seeds_by_themselves_are_no_mean(tmp_path, stub, capsys):
    error = refused(capsys, tmp_path / "runs", **seeds_of(stub(data="1"), "0", "1"))
    assert "data with fingerprint f1" in error
    assert not (tmp_path / "runs" / "run" / "seeds.json").exists()


def test_bad_requests_start_nothing(tmp_path, stub, capsys, monkeypatch):
    values = seeds_of(stub(), "0", "1")
    assert "exclude each other" in refused(capsys, tmp_path / "runs", **values, seed=3)
    assert "occurs twice" in refused(capsys, tmp_path / "runs", **{**values, "seeds": ["1", "1"]})
    with flagsaver.flagsaver(**values), pytest.raises(ValueError, match="without torchrun"):
        seeds.run_seeds(main.settings_from_flags(), Processes(rank=0, world=2))
    assert not (tmp_path / "runs").exists()


def test_fingerprints_say_whether_the_seed_draws_the_data(tmp_path, capsys):
    with flagsaver.flagsaver(**TINY, seeds=["0", "1", "2"], output_dir=str(tmp_path)):
        drawn, known = seeds._fingerprints(seeds.plan(main.settings_from_flags()))
        single = setup.prepare(main.settings_from_flags().config())
    # synthetic data are generated by the seed
    assert drawn and set(known) == {0, 1} and known[0] == single.fingerprint != known[1]
    assert "60 users" in capsys.readouterr().out


def test_a_dry_run_of_seeds_says_what_they_would_do(tmp_path, capsys):
    run_seeds({**TINY, "output_dir": str(tmp_path / "out")}, seeds=["0", "1"], dry_run=True)
    text = capsys.readouterr().out
    assert "steps an epoch" in text and "2 seeds" in text
    assert not (tmp_path / "out").exists()


def outputs(folder):
    return {name: without_commit(folder / name) for name in OUTPUTS}


@pytest.mark.parametrize(
    ("program", "numbers"),
    [(light_main, (5,)), pytest.param(main, (0, 5), marks=[pytest.mark.slow, pytest.mark.probes])],
    ids=["light", "whole"],
)
def test_seeds_give_what_single_runs_give_byte_for_byte_whatever_the_hash_seed(
    tmp_path, capsys, monkeypatch, program, numbers
):
    monkeypatch.setattr(seeds, "MAIN", program.__file__)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # the runs of seeds have this one, the single runs here have this process's own
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    fair = {"enable_fairness": True, "fairness_sampling": True, "rerank_fair": True}
    values = {**TINY, **fair, "epochs": 1, "output_dir": str(tmp_path)}
    run_seeds(values, seeds=[str(seed) for seed in numbers])
    text = capsys.readouterr().out
    assert "seed 5  epoch 1/1" in text
    assert ("drawn by the seed" in " ".join(text.split())) == (len(numbers) > 1)
    with threadpool_limits(1):
        for seed in numbers:
            run_seeds({**values, "output_dir": str(tmp_path / "single"), "run_name": f"seed{seed}"}, seed=seed)
            assert outputs(tmp_path / "run" / f"seed{seed}") == outputs(tmp_path / "single" / f"seed{seed}")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_seeds_that_a_signal_ended_go_on_to_the_same_bytes(tmp_path, number):
    values = {**TINY, "epochs": 40, "patience": 40, "seeds": ["0", "1"], "resume": True}
    shown = {name: ",".join(value) if isinstance(value, list) else value for name, value in values.items()}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder):
        command = [sys.executable, main.__file__, f"--output_dir={folder}", *(f"--{n}={v}" for n, v in shown.items())]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, **pipes)

    whole = start(tmp_path / "whole")
    assert whole.communicate()[1] == "" and whole.returncode == 0
    cut = start(tmp_path / "cut")
    seen = set()
    for line in cut.stdout:
        seen |= {line.split("  ")[0]} if "  epoch 3/" in line else set()
        if len(seen) == 2:
            break
    cut.send_signal(number)
    error = cut.communicate()[1]
    assert cut.returncode == 128 + number and error.startswith(f"stopped by {number.name}") and "--resume" in error
    assert all((tmp_path / "cut" / "run" / f"seed{seed}" / "state.pt").exists() for seed in (0, 1))
    assert start(tmp_path / "cut").wait() == 0
    for seed in (0, 1):
        assert outputs(tmp_path / "cut" / "run" / f"seed{seed}") == outputs(tmp_path / "whole" / "run" / f"seed{seed}")
