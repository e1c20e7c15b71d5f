"""Train and evaluate FA-BUHS and its baselines.

    python main.py --dataset=synthetic --enable_fairness=True --fairness_sampling=True
    python main.py --dataset=ml --enable_fairness=False --synthesis_type=gru --epochs=50
    python main.py --dataset=ml --enable_fairness=True --rerank_fair=True --rerank_alpha=0.2 --exposure_floor=0.1

`python main.py --help` lists every flag. Raw files -> InteractionData -> protocol's phases -> batches -> backbone and
method -> ranking -> metrics -> report.
"""

from __future__ import annotations

import signal
import sys
import time
import traceback
from collections.abc import Iterable

from absl import app, flags, logging

from model import MODES
from model.runs.config import Config, Request
from model.runs.manual import help_text
from model.runs.setting import Setting, declared
from model.runs.settings import Settings
from model.runs.surroundings import make_console_lenient, torchrun_ranks

FLAGS = flags.FLAGS
STOPPED = "stopped by SIGINT"


def define_flags(settings: Iterable[Setting], values: flags.FlagValues = FLAGS) -> None:
    """Define a flag for each of the `settings` in `values`."""
    bounds = {"int": flags.DEFINE_integer, "float": flags.DEFINE_float}
    for setting in settings:
        default = str(setting.default) if setting.base == "Path" and setting.default is not None else setting.default
        facts = {"name": setting.name, "default": default, "help": setting.help, "flag_values": values}
        if setting.base in bounds:
            # absl's bounds are allowed values; a bound that is not is checked where the flag becomes a setting
            low = setting.low if setting.above is None else setting.above
            bounds[setting.base](lower_bound=low, upper_bound=setting.high, **facts)
        elif setting.base == "bool":
            flags.DEFINE_bool(**facts)
        elif setting.base.startswith("tuple"):
            (flags.DEFINE_multi_string if setting.flag_each else flags.DEFINE_list)(**facts)
        elif setting.choices is not None:
            flags.DEFINE(ChoiceParser(setting), **facts)
        else:
            flags.DEFINE_string(**facts)


class ChoiceParser(flags.ArgumentParser):
    """Parser of a flag that has choices, which are looked up when the flag is parsed."""

    def __init__(self, setting: Setting):
        self.setting = setting

    def parse(self, argument: str) -> str:
        """Give `argument` back; one that is not among the choices is a ValueError."""
        self.setting.check_choice(argument)
        return argument


define_flags((declared(Request) | declared(Config)).values())


def settings_from_flags(values: flags.FlagValues = FLAGS, kind: type[Config] = Config) -> Settings:
    """Give the values of all flags and which of them the user chose; flags that do not go together are a ValueError."""
    names = [*declared(Request), *declared(kind)]
    settings = Settings(
        {name: values[name].value for name in names},
        frozenset(name for name in names if values[name].value != values[name].default),
        frozenset(name for name in names if not values[name].using_default_value),
        kind,
    )
    path = settings.request.config
    settings = settings if path is None else settings.after(path)
    settings.check()
    return settings


def parse(argv: list[str]) -> list[str]:
    """Parse flags; --help prints them by group, and a bad one ends with one line and exit code 2."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(help_text(__doc__, (declared(Request) | declared(Config)).values()))
        sys.exit(0)
    try:
        return FLAGS(argv)
    except flags.Error as error:
        if (torchrun_ranks() or {}).get("RANK", 0) == 0:
            # absl puts words of a log before the reason for which it could not open a flag file
            print(f"error: {' '.join(str(error).removeprefix('ERROR:: ').splitlines())}", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str]) -> None:
    """Run what the flags ask for; a bad request ends with one line and exit code 2."""
    try:
        _run(argv, time.perf_counter())
    except KeyboardInterrupt:  # before there is a run to end, such as while torch is loaded
        print(STOPPED, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _run(argv: list[str], started: float) -> None:
    # torch takes two seconds to load, for which --help and a misspelt flag need not wait (Decision 46)
    from model.runs.errors import is_out_of_memory, out_of_memory
    from model.runs.processes import joined
    from model.training.signals import Stopped

    with joined(FLAGS.device) as processes:
        try:
            if len(argv) > 1:
                raise ValueError(f"unexpected arguments {' '.join(argv[1:])}; every setting is a flag, see --help")
            MODES[FLAGS.mode](settings_from_flags(), started, processes)
        except (Stopped, KeyboardInterrupt) as stopped:
            if processes.first:
                print(str(stopped) or STOPPED, file=sys.stderr)
            sys.exit(getattr(stopped, "exit_code", 128 + signal.SIGINT))
        except Exception as error:
            sys.stdout.flush()
            if not processes.speaks_for_failure():
                sys.exit(2)
            if is_out_of_memory(error):
                error = out_of_memory(error)
            if not isinstance(error, ValueError | OSError):
                raise
            logging.debug("%s", traceback.format_exc())
            print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
            sys.exit(2)


if __name__ == "__main__":
    make_console_lenient()
    app.run(main, flags_parser=parse)
