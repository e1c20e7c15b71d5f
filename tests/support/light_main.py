"""The program without what takes longer than a tiny run itself, as a file that a launcher starts."""

from __future__ import annotations

from absl import app

import main
from model.runs.surroundings import make_console_lenient
from tests.support.light import light_runs

if __name__ == "__main__":
    make_console_lenient()
    with light_runs():
        app.run(main.main, flags_parser=main.parse)
