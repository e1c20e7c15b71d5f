"""A process that has loaded all of the program and forks a child for each run, to kill within a fraction of a second.

`python -m tests.support.zygote` reads a request a line (JSON) and answers with a line: how the child ended and the
processor time it took. Nothing here may use autograd or start threads before a fork.
"""

from __future__ import annotations

import importlib
import io
import json
import os
import pkgutil
import select
import signal
import sys
import time
import traceback

import jinja2  # noqa: F401 (the program imports it late)
import pyarrow.parquet  # noqa: F401 (likewise)
import torch
import torch._dynamo
from absl.testing import flagsaver

import data
import main
import model
from model.results import pages
from tests.support.light import light_runs
from tests.support.runs import TINY

POLL_SECONDS = 0.0005


def load_all() -> None:
    """Load what a run would load late, so that no child has to."""
    for package in (data, model):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    pages._template()


def kill_at(name: str, number: int, when: str) -> None:
    """Let call `number` (from 1) of the function `name` kill this process `before` it, `after` it, or, for
    `torch.save`, `half` way."""
    owner, _, attribute = name.rpartition(".")
    owner = pkgutil.resolve_name(owner)
    function, calls = getattr(owner, attribute), 0

    def deadly(*arguments, **options):
        nonlocal calls
        calls += 1
        if calls < number or when == "after":
            result = function(*arguments, **options)
        if calls < number:
            return result
        if when == "half":
            content, file = arguments
            buffer = io.BytesIO()
            function(content, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, attribute, deadly)


def live(folder: str, values: dict, at: list | None) -> int:
    """Do a run as `main` does and give its exit code."""
    if at is not None:
        kill_at(*at)
    try:
        with flagsaver.flagsaver(output_dir=folder, **{**TINY, **values}):
            main.main(["main.py"])
        return 0
    except SystemExit as end:
        return end.code
    except BaseException:
        traceback.print_exc()
        return 1


def clock(pid: int) -> float:
    """Processor seconds of a process where the system tells (how far it is, however busy the machine), else time."""
    return time.clock_gettime((~pid << 3) | 2) if sys.platform == "linux" else time.monotonic()


def bear(request: dict) -> dict:
    """Fork a child for `request`: `folder`, `values`, and what ends it: a `signal` after `seconds`, or a call `at`."""
    ended, alive = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ended)
        with open(f"{request['folder']}.log", "ab", buffering=0) as log:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
        code = live(request["folder"], request["values"], request.get("at"))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    os.close(alive)
    start = clock(child)
    limit = request.get("seconds", float("inf"))
    while not select.select([ended], [], [], POLL_SECONDS)[0]:
        if clock(child) - start >= limit:
            os.kill(child, request["signal"])
            limit = float("inf")
    os.close(ended)
    _, status, usage = os.wait4(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "seconds": usage.ru_utime + usage.ru_stime}


if __name__ == "__main__":
    torch.set_num_threads(1)
    load_all()
    # pictures and probes take most of a tiny run's time, and are made from what a finished run holds
    with light_runs():
        print("ready", flush=True)
        for line in sys.stdin:
            print(json.dumps(bear(json.loads(line))), flush=True)
