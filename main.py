"""Train and evaluate FA-BUHS and its baselines.

    python main.py --dataset=synthetic --enable_fairness=True --fairness_sampling=True
    python main.py --dataset=ml --enable_fairness=False --synthesis_type=gru --epochs=50
    python main.py --dataset=ml --enable_fairness=True --rerank_fair=True --rerank_alpha=0.2 --exposure_floor=0.1

`python main.py --help` lists every flag. Raw files -> InteractionData -> protocol's phases -> batches -> backbone and
method -> ranking -> metrics -> report.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Mapping

from absl import app, flags, logging

from data.datareader import READERS
from data.protocols import PROTOCOLS
from model import BACKBONES, LOSSES, METHODS, SCORERS, SYNTHESIZERS
from model.modes.compare import compare_runs
from model.modes.score_lists import score_rankings
from model.modes.serving import evaluate_checkpoint, recommend
from model.modes.train import train
from model.runs.config import Config, Request
from model.runs.console import make_console_lenient
from model.runs.errors import is_out_of_memory, out_of_memory
from model.runs.presets import RECIPES
from model.runs.processes import Processes, joined, torchrun_ranks
from model.runs.settings import MODE_SETTINGS, Settings
from model.training.signals import Stopped


def _define_choice(name: str, default: str | None, registry: Mapping, meaning: str) -> None:
    """Define a flag whose choices are the keys of `registry` at the time of parsing."""

    def check(value: str | None) -> bool:
        if value not in registry and value is not None:
            raise flags.ValidationError(f"--{name}={value}: allowed is one of {', '.join(registry)}")
        return True

    flags.DEFINE_string(name, default, f"<{'|'.join(registry)}>: {meaning}")
    flags.register_validator(name, check)


# fmt: off
# --- What to do ---
_define_choice("mode", "train", MODE_SETTINGS, "train (and test once); evaluate a checkpoint anew; recommend from one; score rankings of another program; compare finished runs.")
flags.DEFINE_string("checkpoint", None, "evaluate, recommend: the checkpoint.pt of a run, or the run's folder.")
flags.DEFINE_list("users", [], "recommend: the data set's own user ids, comma-separated, or all.")
flags.DEFINE_string("control", None, "evaluate, recommend: setting of a fairness method that leaves several open after training. None: evaluate all, recommend by the first.")
flags.DEFINE_string("recommendations", None, "recommend: CSV or parquet file to write instead of printing.")
flags.DEFINE_string("rankings", None, "score: rankings by another program, with the data set's own ids (parquet, CSV, or a TREC run).")
flags.DEFINE_list("runs", [], "compare: folders of finished runs, comma-separated, also of --seeds; the first is what the others are compared with.")
flags.DEFINE_list("seeds", [], "train: several seeds, comma-separated, in processes side by side where cores allow.")
flags.DEFINE_string("export_split", None, "With --dry_run: folder for the split's files, with the data set's own ids, for other programs.")

# --- Data ---
_define_choice("dataset", "ml", READERS, "Data set: ml = MovieLens-1M, bx = BookCrossing, synthetic = generated.")
flags.DEFINE_string("dataset_dir", "./datasets", "Folder that holds the data sets' folders (datasets/README.md shows the trees).")
flags.DEFINE_string("cache_dir", "~/.cache/fabuhs", "Folder for data as read and title vectors, reused between runs.")
flags.DEFINE_string("title_encoder", None, "Encoder of item titles: a sentence-transformers name, a local model folder, or 'hash' (deterministic stand-in). None: preset.")
flags.DEFINE_float("max_bad_rows", 0.001, "Largest fraction of malformed rows of a file, in [0, 1]; above it the run stops.", 0, 1)
flags.DEFINE_bool("keep_incomplete_users", False, "BookCrossing: keep users with a missing age or country, as unknown.")
flags.DEFINE_list("user_attribute", None, "Sensitive attributes, comma-separated: the first is acted on, all are reported. ml: gender, age, occupation; bx: age, country. None: preset.")
flags.DEFINE_integer("synthetic_users", 600, "Synthetic data: number of users, >= 10.", 10)
flags.DEFINE_integer("synthetic_items", 400, "Synthetic data: number of items, >= 10.", 10)
flags.DEFINE_integer("synthetic_interactions", 24_000, "Synthetic data: number of interactions, >= 100.", 100)

# --- Model and history synthesis ---
_define_choice("backbone", "sparsenn", BACKBONES, "Recommender.")
flags.DEFINE_string("backbone_checkpoint", None, "Run folder or checkpoint.pt of a run of --fairness_method=none, whose backbone a method of two stages takes instead of training one.")
flags.DEFINE_integer("embedding_dim", None, "Width of embeddings: of each feature for sparsenn, of users and items for the others, >= 1. None: preset.", 1)
flags.DEFINE_integer("graph_layers", None, "gccf, lightgcn: layers of convolution, >= 0. None: preset.", 0)
_define_choice("synthesis_type", "mean", SYNTHESIZERS, "User history synthesis; none = two-tower base model without a history.")
flags.DEFINE_integer("sample_size", 15, "Synthesis horizon N: items drawn from the user's history, >= 1.", 1)
flags.DEFINE_integer("attention_heads", 1, "Heads of --synthesis_type=attention; must divide the width 96.", 1)
_define_choice("scorer", "dot_compress", SCORERS, "How a user and an item vector are scored.")
flags.DEFINE_list("user_hidden", None, "Hidden widths of the user tower, comma-separated. None: preset.")
flags.DEFINE_list("item_hidden", None, "Hidden widths of the item tower, comma-separated. None: preset.")
flags.DEFINE_float("sampling_softmax_temp", None, "Temperature T of the tail-biased draw p(i|u) ~ exp((1/d_i)/T), > 0; inf = uniform. None: preset.", 0)
flags.DEFINE_bool("upstream_compat", False, "Restore upstream's estimator: a history per scored row, BookCrossing target left in, repeats, random GRU state, validation item a test candidate.")

# --- Fairness ---
flags.DEFINE_bool("enable_fairness", False, "Enable the fairness framework.")
_define_choice("fairness_method", "fabuhs", METHODS, "Fairness method, read with --enable_fairness.")
flags.DEFINE_multi_string("method_option", [], "name=value option of the fairness method; may be repeated.")
flags.DEFINE_bool("fairness_sampling", False, "Enable upstream fairness-constrained sampling.")
flags.DEFINE_float("fairness_weight", 0.5, "Interpolation alpha in [0, 1]: 1 = catalogue parity (BUHS), 0 = group parity.", 0, 1)
flags.DEFINE_float("adversarial_lambda_user", 0.1, "Weight of the user-side conditional adversary, >= 0.", 0)
flags.DEFINE_float("adversarial_lambda_item", 0.1, "Weight of the item-side conditional adversary, >= 0.", 0)
flags.DEFINE_float("adversarial_ramp", 0.1, "Fraction of the planned steps over which both weights rise from 0, in [0, 1].", 0, 1)
flags.DEFINE_enum("item_adversary", "popularity", ["popularity", "user_attribute"], "What the item-side adversary predicts: head/tail, or the user's attribute.")
flags.DEFINE_enum("adversary_input", "user", ["user", "pair"], "What the user-side adversary reads: the user vector, or also its product with the item vector.")
flags.DEFINE_bool("mask_sensitive_feature", None, "Leave the sensitive attribute out of the user tower's inputs. None: on with --enable_fairness.")

# --- Re-ranking ---
flags.DEFINE_bool("rerank_fair", False, "Re-rank by exposure after training.")
flags.DEFINE_float("rerank_alpha", 0.2, "Weight of the exposure deficit against relevance, in [0, 1].", 0, 1)
flags.DEFINE_float("exposure_floor", 0.1, "Guaranteed share of discounted exposure for tail items in each list, in [0, 1].", 0, 1)
flags.DEFINE_integer("rerank_pool", 100, "Candidates per user that re-ranking may use, >= 1.", 1)
flags.DEFINE_enum("rerank_target", "catalogue", ["catalogue", "train"], "Target exposure of a group: its share of the catalogue, or of train interactions.")

# --- Optimisation ---
_define_choice("recipe", "upstream", RECIPES, "Presets of this group's flags: upstream = the published ones, tuned = softmax loss, large batches.")
flags.DEFINE_integer("epochs", None, "Largest number of epochs, >= 1. None: preset.", 1)
flags.DEFINE_integer("batch_size", None, "Positives per step, >= 2. None: preset.", 2)
flags.DEFINE_float("lr", None, "Learning rate of Adam, > 0. None: preset.", 0)
flags.DEFINE_integer("num_negatives", None, "Uniform negatives per positive, >= 1. None: preset.", 1)
flags.DEFINE_integer("in_batch_negatives", None, "Other positives of the batch as further negatives per positive, >= 0. None: preset; of sparsenn as many as --num_negatives.", 0)
_define_choice("loss", None, LOSSES, "Ranking loss of a positive against its negatives. None: preset.")
flags.DEFINE_float("l2", None, "Weight of the mean squared norm of a row's vectors, for backbones that know ids alone, >= 0. None: preset.", 0)
flags.DEFINE_float("weight_decay", 0.0, "Weight decay of the optimisers (Adam's own, added to the gradient), >= 0.", 0)
flags.DEFINE_integer("patience", None, "Epochs without a better validation score before stopping, >= 1. None: preset.", 1)
flags.DEFINE_bool("sparse_updates", False, "Update only those rows of user tables that a step reads: faster with many users, not exact (other rows' momentum waits).")
flags.DEFINE_enum("device", "auto", ["auto", "cpu", "cuda"], "Where to compute; cuda without a GPU is an error.")
flags.DEFINE_enum("precision", "fp32", ["fp32", "bf16"], "Arithmetic of the training step's matrix products; evaluation is always fp32.")

# --- Evaluation ---
_define_choice("protocol", "loo", PROTOCOLS, "Evaluation protocol.")
flags.DEFINE_multi_string("protocol_option", [], "name=value option of the protocol; may be repeated.")
flags.DEFINE_float("warm_threshold", None, "Share of items, the most popular ones, that count as head, in (0, 1). None: preset.", 0, 1)
flags.DEFINE_list("eval_k", None, "List lengths K, comma-separated; the first selects the epoch and fills the table. None: preset.")
flags.DEFINE_integer("eval_every", None, "Epochs between validations, >= 1; the last epoch always has one. None: preset.", 1)
flags.DEFINE_integer("eval_history_draws", 1, "Histories per user whose vectors are averaged in evaluation, >= 1.", 1)
flags.DEFINE_integer("eval_negatives", None, "Rank against this many sampled items instead of the full catalogue, >= 1.", 1)
flags.DEFINE_integer("eval_block_mb", 256, "Most memory for scoring and ranking a block of users, in MiB, >= 1.", 1)

# --- Run ---
flags.DEFINE_integer("seed", 0, "Seed of every random stream, >= 0.", 0)
flags.DEFINE_string("output_dir", "./runs", "Folder for run folders.")
flags.DEFINE_string("run_name", None, "Name of the run's folder. None: made of data set, method, seed and time.")
flags.DEFINE_bool("resume", False, "Continue the run in the folder named by --output_dir and --run_name from its last saved state; without one, start it.")
flags.DEFINE_string("checkpoint_every", "1", "Epochs between saved states, or minutes with min behind (10min); a run that SIGINT or SIGTERM ends saves one too.")
flags.DEFINE_enum("wandb_mode", "disabled", ["disabled", "offline", "online"], "Weights & Biases tracking.")
flags.DEFINE_string("wandb_project", "fabuhs", "Weights & Biases project.")
flags.DEFINE_bool("dry_run", False, "Print phases, sizes, parameters and a time estimate; train nothing, and write nothing but --export_split.")
# fmt: on

FLAGS = flags.FLAGS

_REPEATED = ";\n"  # absl adds a line to the help of a flag that may be repeated

# The first flag of each group above, for --help.
GROUPS = {
    "mode": "What to do",
    "dataset": "Data",
    "backbone": "Model and history synthesis",
    "enable_fairness": "Fairness",
    "rerank_fair": "Re-ranking",
    "recipe": "Optimisation",
    "protocol": "Evaluation",
    "seed": "Run",
}


def settings_from_flags() -> Settings:
    """The values of all flags, and which of them the user chose; refuses what does not go together."""
    names = [field.name for kind in (Request, Config) for field in dataclasses.fields(kind)]
    settings = Settings(
        {name: FLAGS[name].value for name in names},
        frozenset(name for name in names if FLAGS[name].value != FLAGS[name].default),
        frozenset(name for name in names if not FLAGS[name].using_default_value),
    )
    settings.check()
    return settings


def config_from_flags() -> Config:
    """The settings of a run under the flags."""
    return settings_from_flags().config()


MODES: dict[str, Callable[[Settings, float, Processes], object]] = {
    "train": train,
    "evaluate": evaluate_checkpoint,
    "recommend": recommend,
    "score": score_rankings,
    "compare": compare_runs,
}


def help_text() -> str:
    """Every flag by group, with its choices, range, unit and default."""
    lines = [__doc__.strip()]
    for field in (*dataclasses.fields(Request), *dataclasses.fields(Config)):
        flag = FLAGS[field.name]
        if flag.name in GROUPS:
            lines += ["", f"{GROUPS[flag.name]}:"]
        choices = f"<{'|'.join(flag.enum_values)}>: " if getattr(flag, "enum_values", None) else ""
        default = "" if flag.default in (None, []) else f" (default: {flag.default})"
        text = f"--{flag.name}  {choices}{flag.help.partition(_REPEATED)[0]}{default}"
        lines.append(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="      "))
    return "\n".join(lines)


def parse(argv: list[str]) -> list[str]:
    """Parse flags; --help prints them by group, and a bad one ends with one line and exit code 2."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(help_text())
        sys.exit(0)
    try:
        return FLAGS(argv)
    except flags.Error as error:
        if (torchrun_ranks() or {}).get("RANK", 0) == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str]) -> None:
    """Run what the flags ask for; a bad request ends with one line and exit code 2."""
    started = time.perf_counter()
    with joined(FLAGS.device) as processes:
        try:
            if len(argv) > 1:
                raise ValueError(f"unexpected arguments {argv[1:]}; every setting is a flag, see --help")
            MODES[FLAGS.mode](settings_from_flags(), started, processes)
        except (Stopped, KeyboardInterrupt) as stopped:
            if processes.first:
                print(str(stopped) or "stopped by SIGINT", file=sys.stderr)
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
