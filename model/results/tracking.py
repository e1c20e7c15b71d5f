"""Optional mirror of a run on Weights & Biases; its absence or failure never stops the run."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from numbers import Real
from pathlib import Path
from typing import Any

from absl import logging

from data.messages import warn
from model.results.text_table import Table
from model.runs.config import Config, network_name

MODES = ("disabled", "offline", "online")
INIT_TIMEOUT_SECONDS = 20
FINISH_TIMEOUT_SECONDS = 60
# wandb's own timeouts are kept by its service, which may itself be what hangs: no call is waited for longer than this
LIMIT_SECONDS = {"start": INIT_TIMEOUT_SECONDS + 20, "log": 10, "finish": FINISH_TIMEOUT_SECONDS + 20}


class Tracker:
    """A mirror of the run on W&B (`mode` offline or online), or nothing (`disabled`).

    wandb is imported only when it is used, never asks for a login, and writes under `directory`/wandb. The first
    failure, of whatever kind, gives one warning and turns the tracker off; so does a call that takes longer than
    `LIMIT_SECONDS`. An unknown mode is a ValueError.
    """

    def __init__(
        self,
        mode: str,
        project: str,
        run_name: str,
        config: Mapping,
        directory: Path | str,
        group: str | None = None,
        run_id: str | None = None,
        job_type: str | None = None,
    ):
        """Start a run of `project`, or go on with its run `run_id`; W&B sorts runs by `group` and `job_type`."""
        if mode not in MODES:
            raise ValueError(f"--wandb_mode is {mode!r}; allowed: {', '.join(MODES)}")
        self._run = None
        if mode != "disabled":
            settings = {
                "project": project,
                "name": run_name,
                "config": dict(config),
                "dir": str(directory),
                "group": group,
                "job_type": job_type,
            }
            settings |= {"id": run_id, "resume": "allow"} if run_id else {}
            self._run = self._attempt("start", lambda: _start(mode, settings))

    @classmethod
    def of(cls, config: Config, directory: Path, run_id: str | None = None, active: bool = True) -> Tracker:
        """Start the tracker of a run under `config`, sorted by method and seed; it does nothing where not `active`."""
        mode = config.wandb_mode if active else "disabled"
        group = f"{config.dataset}-{config.method}-{network_name(config.backbone, config.synthesis_type)}"
        seed = f"seed {config.seed}"
        return cls(mode, config.wandb_project, config.run_name, config.as_json(), directory, group, run_id, seed)

    @property
    def active(self) -> bool:
        """Whether rows still reach W&B."""
        return self._run is not None

    @property
    def id(self) -> str | None:
        """The run's id on W&B, for a process that goes on with it; None while nothing is logged."""
        return self._run.id if self.active else None

    def log(self, row: Mapping[str, float], step: int | None = None) -> None:
        """Log one row of numbers; undefined ones (NaN) and texts are left out. Steps must not decrease."""
        if self.active:
            self._attempt("log", lambda: self._run.log(_numbers(row), step=step))

    def finish(
        self,
        summary: Mapping[str, float] | None = None,
        images: Mapping[str, Path] | None = None,
        tables: Sequence[Table] = (),
        exit_code: int = 0,
    ) -> None:
        """Write the final numbers, pictures and pages (`images`: name -> file) and tables, and close the run.

        A second call does nothing.
        """
        if self.active:
            self._attempt("finish", lambda: self._finish(summary or {}, images or {}, tables, exit_code))
            self._run = None

    def _attempt(self, action: str, call: Callable[[], Any]) -> Any:
        # Whatever goes wrong in a third party's service (no network, no package, no disk) is not worth a training run.
        outcome = Future()
        # a daemon, so that a call that never returns does not keep the process either
        threading.Thread(target=_settle, args=(outcome, call), daemon=True).start()
        try:
            return outcome.result(LIMIT_SECONDS[action])
        except Exception as error:
            self._run = None
            if outcome.done():
                reason = " ".join(str(error).split()) or type(error).__name__
            else:
                reason = f"no answer in {LIMIT_SECONDS[action]} s"
                _end_service()
            warn(f"W&B is off for the rest of this run: it failed to {action} ({reason})")

    def _finish(
        self, summary: Mapping[str, float], images: Mapping[str, Path], tables: Sequence[Table], exit_code: int
    ) -> None:
        import wandb

        def shown(path: Path):
            return wandb.Html(str(path), inject=False) if path.suffix == ".html" else wandb.Image(str(path))

        media = {name: shown(Path(path)) for name, path in images.items()}
        for table in tables:
            # W&B needs a name for every column
            headers = [header or "metric" for header in table.headers]
            media[table.caption.partition(",")[0]] = wandb.Table(columns=headers, data=table.rows)
        if media:
            self._run.log(media)
        self._run.summary.update(_numbers(summary))
        self._run.finish(exit_code=exit_code)


def _settle(outcome: Future, call: Callable[[], Any]) -> None:
    try:
        outcome.set_result(call())
    except BaseException as error:
        outcome.set_exception(error)


def _start(mode: str, settings: dict) -> Any:
    import wandb

    wandb.setup(wandb.Settings(silent=True, console="off"))
    if mode == "online" and not wandb.login(prompt=False, verify=False):
        raise RuntimeError("no API key is configured; run `wandb login`, or use --wandb_mode=offline")
    limits = wandb.Settings(init_timeout=INIT_TIMEOUT_SECONDS, finish_timeout=FINISH_TIMEOUT_SECONDS)
    run = wandb.init(**settings, mode=mode, reinit="create_new", settings=limits)
    logging.info("W&B run: %s", run.url if mode == "online" else run.dir)
    return run


def _end_service() -> None:
    """Kill wandb's service process and drop the exit hook that would wait for its answer for ever."""
    # no public call has a time limit: wandb's exit hook asks the service to end, and waits for the answer
    with contextlib.suppress(AttributeError, ImportError):
        from wandb.sdk import wandb_setup

        connection = wandb_setup.singleton()._connection
        connection._cleanup()
        connection._proc._process.kill()


def _numbers(row: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if isinstance(value, Real) and math.isfinite(value)}
