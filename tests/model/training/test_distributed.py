"""Many processes give what one gives: gradients, values, lists, loss curves and metrics."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import main
from data.dataloader import BatchSampler
from data.sampling.negatives import NegativeSampler
from data.sampling.sources import history_source
from data.structs import ItemLists, Ranking
from fairness_utils import ConditionalAdversary
from model import METHODS
from model.evaluation.evaluator import Evaluator
from model.evaluation.probes import held_out_users
from model.modes import train as training_mode
from model.runs import processes as processes_module
from model.runs.environment import Environment
from model.runs.processes import ALONE, Processes, join_rankings, joined
from model.runs.streams import stream_seeds, torch_generator
from model.sparsenn import SparseNN
from model.training.progress import Progress
from model.training.state import Training
from model.training.update import update
from tests.support import light_main
from tests.support.runs import ROOT, TINY, run_main
from tests.support.stops import at_call, terminate

CPU = torch.device("cpu")
FAIR = {"enable_fairness": True, "fairness_sampling": True, "method_option": ["reinitialise_every=3"]}


SEEDING = threading.Lock()  # threads share torch's global seed, which new layers are drawn from


class Board:
    """Where threads that stand for processes meet."""

    def __init__(self, world):
        self.slots, self.barrier = [None] * world, threading.Barrier(world, timeout=60)

    def exchange(self, rank, value):
        self.slots[rank] = value
        self.barrier.wait()
        values = list(self.slots)
        self.barrier.wait()
        return values


@dataclasses.dataclass(frozen=True)
class ThreadProcesses(Processes):
    """A process that is a thread."""

    board: Board | None = None

    def sum(self, tensor):
        return tensor.copy_(sum(self.board.exchange(self.rank, tensor.clone())))

    def any_of(self, number):
        return max(self.board.exchange(self.rank, number))

    def gather(self, part):
        parts = self.board.exchange(self.rank, part)
        return join_rankings(parts) if self.first else None


def together(world, work):
    """Run `work(processes)` in `world` threads; give what each gives."""
    if world == 1:
        return [work(ALONE)]
    board = Board(world)

    def alone_in_thread(rank):
        try:
            return work(ThreadProcesses(rank, world, board=board))
        except BaseException:
            board.barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(alone_in_thread, range(world)))


@given(world=st.integers(1, 5), count=st.integers(0, 12))
def test_every_row_is_one_process_s_own(world, count):
    shares = [list(Processes(rank, world).own(count)) for rank in range(world)]
    assert sorted(row for share in shares for row in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_gradients_add_up_and_a_missing_one_counts_as_zero():
    def work(processes):
        module = nn.ParameterList([torch.zeros(2), torch.zeros(1), torch.zeros(3)])
        module[0].grad = torch.full((2,), 1.0 + processes.rank)
        if processes.rank == 1:
            module[2].grad = torch.arange(3.0)
        processes.sum_gradients(module)
        return [parameter.grad for parameter in module]

    for gradients in together(2, work):
        assert torch.equal(gradients[0], torch.full((2,), 3.0))
        # an optimiser passes over a parameter that no process has a gradient for
        assert gradients[1] is None
        assert torch.equal(gradients[2], torch.arange(3.0))


@pytest.fixture(scope="module")
def train(tiny_data, tiny_phase, make_config):
    """A function: world, sizes of the batches, method and settings -> per process, (weights, logged sums)."""
    held_out = held_out_users(tiny_data.user_groups["gender"].codes, seed=1)

    def run(world, sizes, name, **changes):
        config = make_config(**changes)
        seeds = stream_seeds(config.seed)

        def work(processes):
            environment = Environment(config, tiny_data.user_groups, held_out, seeds, CPU, processes)
            with SEEDING:
                backbone = SparseNN.build(tiny_data, config, seeds["initialisation"], CPU)
                method = METHODS[name](backbone, environment)
                method.begin_phase(tiny_phase, 100)
            parts = [backbone]
            # Adam blows rounding up where a gradient is next to 0
            method.optimisers = (torch.optim.SGD(backbone.parameters(), lr=0.05),)
            if name == "fabuhs":
                parts += [method.user_adversary, method.item_adversary]
                adversaries = [*parts[1].parameters(), *parts[2].parameters()]
                method.discriminator_optimiser = torch.optim.SGD(adversaries, lr=0.05)
            split = tiny_phase.split
            negatives = NegativeSampler(split.train, split.num_items, config.num_negatives, 1, CPU)
            history = None
            if backbone.history_kind is not None:
                weights = method.history_weights(split.histories, split)
                history = history_source("sampled", split.histories, weights, config.sample_size, CPU)
            sampler = BatchSampler(split.train, negatives, history, history_per_row=config.upstream_compat)
            generator, step, values = torch_generator(3), partial(update, processes=processes), []
            for size in sizes:
                edges = torch.randint(len(sampler.user), (size,), generator=generator)
                batch = sampler.sample(edges, generator, generator)
                values.append(processes.sum_values(method.train_step(batch, "method", "train", step)))
            return [part.state_dict() for part in parts], values

        return together(world, work)

    return run


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("none", {"synthesis_type": "none"}),
        ("none", {"synthesis_type": "attention", "upstream_compat": True}),
        ("none", {"synthesis_type": "gru"}),
        ("fabuhs", {"adversary_input": "pair", "method_option": ("discriminator_steps=4", "reinitialise_every=2")}),
        ("fabuhs", {"upstream_compat": True, "item_adversary": "user_attribute"}),
    ],
)
def test_processes_train_as_one_does(train, monkeypatch, world, name, changes):
    def one_at_a_time(self, turn, reinitialise=ConditionalAdversary.reinitialise):
        with SEEDING:
            return reinitialise(self, turn)

    monkeypatch.setattr(ConditionalAdversary, "reinitialise", one_at_a_time)
    # batches that do not divide evenly, among them one with fewer rows than processes
    sizes = (16, 7, 1, 5)
    changes = {"adversarial_ramp": 0.0, "adversarial_lambda_user": 1.0, **changes}
    ((parts, values),) = train(1, sizes, name, **changes)
    for own_parts, own_values in train(world, sizes, name, **changes):
        for one, many in zip(values, own_values, strict=True):
            assert one.keys() == many.keys()
            assert [float(many[key]) for key in one] == pytest.approx([float(one[key]) for key in one], rel=1e-5)
        for one, many in zip(parts, own_parts, strict=True):
            for key, value in one.items():
                torch.testing.assert_close(many[key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_rankings_are_joined_in_order():
    def part(users, lengths):
        relevant = ItemLists(np.concatenate([[0], np.cumsum(lengths)]), np.arange(sum(lengths)))
        shape = (len(users), 2)
        return Ranking(
            np.array(users), relevant, 1 + relevant.item, np.ones(shape, int), np.ones(shape), np.ones(shape[0])
        )

    whole = join_rankings([part([4, 5], [2, 0]), part([7], [3])])
    assert whole.users.tolist() == [4, 5, 7]
    assert whole.relevant.indptr.tolist() == [0, 2, 2, 5]
    assert whole.ranks.tolist() == [1, 2, 1, 2, 3]
    assert whole.topk.shape == whole.scores.shape == (3, 2)


# the same seven items for each of 60 users
GIVEN = ItemLists(7 * np.arange(61), np.tile(np.arange(3, 38, 5), 60))


@pytest.mark.parametrize("candidates", [None, 8, GIVEN])
def test_processes_rank_as_one_does(tiny_data, tiny_phase, make_config, candidates):
    config = make_config()
    seeds = stream_seeds(0)
    task, held_out = dataclasses.replace(tiny_phase.tests[0], candidates=candidates), np.zeros(60, bool)

    def work(processes):
        with SEEDING:
            backbone = SparseNN.build(tiny_data, config, seeds["initialisation"], CPU)
        environment = Environment(config, tiny_data.user_groups, held_out, seeds, CPU, processes)
        evaluator = Evaluator(backbone, METHODS["none"](backbone, environment), environment)
        rank_alone = evaluator._rank_alone

        def counted(score, users, *arguments):
            shares.append(len(users))
            return rank_alone(score, users, *arguments)

        evaluator._rank_alone, shares = counted, shared.setdefault(processes.world, [])
        return evaluator.rank(task, tiny_phase.split.test_histories, tiny_phase.split, 10)

    shared: dict[int, list[int]] = {}
    (one,) = together(1, work)
    many, *others = together(3, work)
    assert others == [None, None]
    # where candidates are drawn, user after user, one process does all
    assert len(shared[3]) == (1 if candidates == 8 else 3) and sum(shared[3]) == sum(shared[1])
    for field in ("users", "ranks", "topk", "candidates"):
        np.testing.assert_array_equal(getattr(one, field), getattr(many, field), err_msg=field)
    np.testing.assert_allclose(one.scores, many.scores, rtol=1e-5, atol=1e-6)


def arguments_of(folder, values):
    values = {**TINY, "output_dir": folder, **values}
    shown = {name: value if isinstance(value, list) else [value] for name, value in values.items()}
    return [f"--{name}={','.join(map(str, value))}" for name, value in shown.items() if value != [None]]


def start(command, **variables):
    """Start `command` with these environment variables; its output is piped."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **variables}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def run_pair(folder, **values):
    """Run the light program in two processes as torchrun does, without its launcher; what each printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, light_main.__file__, *arguments_of(folder, values)]
    pair = [start(command, RANK=rank, LOCAL_RANK=rank, **shared) for rank in ("0", "1")]
    printed = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], printed
    return [stdout for stdout, _ in printed]


def run_many(folder, stop_after=None, program=main.__file__, **values):
    """Run `program` in two processes under torchrun, ended by SIGTERM when it prints `stop_after`; how it went."""
    arguments = arguments_of(folder, values)
    process = start([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", program, *arguments])
    if stop_after is not None:
        next(line for line in process.stdout if line.startswith(stop_after))
        process.terminate()
    stdout, stderr = process.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, process.returncode, stdout, stderr)


def metrics(folder):
    """Loss curve and test metrics of a finished run, undefined ones left out."""
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    curve = {f"{row['epoch']}/{key}": value for row in rows for key, value in row.items() if key.startswith("train/")}
    tests = json.loads((folder / "run" / "result.json").read_text())["metrics"]
    return {key: value for key, value in {**curve, **tests}.items() if value is not None}


def same(first, second, rel=1e-5):
    assert first.keys() == second.keys()
    # probes stop where their own optimisers are content, so rounding shows there
    exact = [key for key in first if "leakage" not in key]
    assert [second[key] for key in exact] == pytest.approx([first[key] for key in exact], rel=rel, abs=1e-9)


def test_two_processes_give_the_same_run(tmp_path):
    run_main(tmp_path / "one", epochs=1)
    printed = run_pair(tmp_path / "two", epochs=1)
    # one process prints
    assert printed[0].count("epoch 1/1") == 1 and "epoch" not in printed[1]
    assert metrics(tmp_path / "two")["1/train/loss"] > 0
    same(metrics(tmp_path / "one"), metrics(tmp_path / "two"))


def cut_off_in_the_second_epoch(monkeypatch, folder, **values):
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(training_mode, "update", at_call(31, terminate, training_mode.update))
        run_main(folder, **values)


@pytest.mark.slow
@pytest.mark.probes
def test_two_processes_go_on_with_what_one_began(tmp_path, monkeypatch):
    values = {**FAIR, "rerank_fair": True}
    run_main(tmp_path / "whole", **values)
    cut_off_in_the_second_epoch(monkeypatch, tmp_path / "cut", **values)
    done = run_many(tmp_path / "cut", **values, resume=True)
    assert done.returncode == 0, done.stderr
    assert "resumed in epoch 2 after 4" in done.stdout
    same(metrics(tmp_path / "whole"), metrics(tmp_path / "cut"))


class Ended(Exception):
    """Stands in for the end of a process, which nothing can be called after."""


@pytest.mark.parametrize(
    ("action", "code", "said"),
    [
        (lambda: None, 0, ""),
        (lambda: sys.exit(), 0, ""),
        (lambda: sys.exit(2), 2, ""),
        (lambda: sys.exit(128 + signal.SIGTERM), 143, ""),
        (lambda: sys.exit("why"), 1, ""),
        (lambda: 1 / 0, 1, "ZeroDivisionError"),
    ],
)
def test_a_worker_ends_with_the_code_that_it_would_have_had(monkeypatch, action, code, said):
    def end(code):
        flushed.extend((sys.stdout.count, sys.stderr.count))
        raise Ended(code)

    class Stream(io.StringIO):
        count = 0

        def flush(self):
            self.count += 1

    flushed = []
    for name, value in {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(processes_module, "_process_group", lambda device: contextlib.nullcontext(Processes(0, 2)))
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "stdout", Stream())
    monkeypatch.setattr(sys, "stderr", Stream())
    with pytest.raises(Ended) as caught, joined("cpu"):
        action()
    assert caught.value.args == (code,) and min(flushed) > 0
    assert said in sys.stderr.getvalue() and bool(said) == bool(sys.stderr.getvalue())


def test_processes_save_by_one_clock(monkeypatch, make_config):
    written = [[], []]

    def work(processes):
        config = make_config(checkpoint_every="1min")
        run = SimpleNamespace(config=config, processes=processes)
        session = training_mode.Session(run, None, None, None, None, None)
        monkeypatch.setattr(
            training_mode.Session, "save", lambda self: written[self.run.processes.rank].append(self.saved)
        )
        # the first one's minute is over in the third step, the other's never
        for step in range(1, 5):
            session.saved = training_mode.time.monotonic() - (20.5 * step if processes.first else 0)
            session.save_by_clock()
        return len(written[processes.rank])

    assert together(2, work) == [2, 2]


def test_processes_that_resume_after_the_last_step_of_an_epoch_add_its_values_up():
    def work(processes):
        saved = {"progress": Progress(step=7, counts={"loss": 10}).as_json(), "totals": {"loss": torch.tensor(5.0)}}
        training = Training(
            nn.Linear(1, 1), METHODS["none"].__new__(METHODS["none"]), Progress.of(saved, 0.0), processes
        )
        method = SimpleNamespace(load_state_dict=lambda state: None, load_training_state=lambda state: None)
        training.method, training.generators = method, {}
        state = {"backbone": training.backbone.state_dict(), "method": {}, "training": {}, "generators": {}}
        training.load({**state, "selection": {}, "kept": {}})
        return training.progress.means(processes)

    assert together(3, work) == [{"loss": 0.5}] * 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "code", "words"),
    [
        ("os.kill(os.getpid(), signal.SIGTERM)", 143, "stopped by SIGTERM; this goes on from here: "),
        ("raise RuntimeError('broken')", 1, "RuntimeError: broken"),
        ("raise ValueError('bad')", 2, "error: bad"),
    ],
)
def test_what_ends_one_process_in_the_middle_ends_all_with_its_code(tmp_path, action, code, words):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(Path(main.__file__).parent)!r})\n"
        "import main\n"
        "from model.modes import train\n"
        "update, calls = train.update, []\n"
        "def struck(*arguments, **options):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 10 and os.environ['RANK'] == '1':\n"
        f"        {action}\n"
        "    return update(*arguments, **options)\n"
        "train.update = struck\n"
        "main.app.run(main.main, flags_parser=main.parse)\n"
    )
    done = run_many(tmp_path, program=str(program))
    assert done.returncode == 1 and done.stderr.count(words) == 1, done.stderr
    # the launcher names the first to fail
    assert re.search(rf"Root Cause.*?exitcode *: {code} ", done.stderr, re.DOTALL), done.stderr
    assert (tmp_path / "run" / "state.pt").exists()
    if code == 143:
        pasted = done.stderr.partition(words)[2].splitlines()[0].replace(str(program), main.__file__)
        again = subprocess.run(["sh", "-c", pasted], capture_output=True, text=True, timeout=300)
        assert again.returncode == 0 and "resumed in epoch 2 after 3" in again.stdout, again.stderr


@pytest.mark.slow
def test_a_failure_is_one_message_from_all_processes(tmp_path):
    for values in (
        {"user_attribute": "height"},
        {"rerank_alpha": 2},
        {"synthesis_type": "gru", "upstream_compat": True},
    ):
        done = run_many(tmp_path, **values)
        assert done.returncode != 0
        assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_one_process_goes_on_with_what_two_began(tmp_path):
    values = {**FAIR, "epochs": 12, "patience": 12}
    run_main(tmp_path / "whole", **values)
    done = run_many(tmp_path / "cut", stop_after="epoch 3/12", **values)
    assert "stopped by SIGTERM" in done.stderr and (tmp_path / "cut" / "run" / "state.pt").exists()
    run_main(tmp_path / "cut", **values, resume=True)
    # over many steps Adam blows rounding up, and lists differ where scores nearly tie
    same(metrics(tmp_path / "whole"), metrics(tmp_path / "cut"), rel=0.01)
