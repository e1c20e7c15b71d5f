"""Every setting of the program, declared once: `Request` is what to do, `Config` what a run is.

Flags, --help, refusals, the tables of FLAGS.md and what a resumed or a trained run may change are made from these
declarations; a new setting is one field here. The list is as long as there are settings.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.datareader import READERS
from data.messages import shown, suggestion
from data.protocols import PROTOCOLS
from data.readers.options import DEFAULT_DATASET_DIR
from model import BACKBONES, LOSSES, METHODS, MODES, NCF_FORMS, SCORERS, SYNTHESIZERS
from model.runs.presets import RECIPES, filled
from model.runs.setting import Need, Setting, check_table_path, declared, saving_interval, setting, when

# The method of a run without one.
UNFAIR = "none"

# The modes that read a setting.
JUDGED = ("train", "evaluate", "score")
SERVED = ("train", "evaluate", "recommend")
JUDGED_OR_SERVED = ("train", "evaluate", "recommend", "score")
PLACED = ("train", "evaluate", "score", "compare")

FAIR, RERANKED, SYNTHETIC = when("enable_fairness", True), when("rerank_fair", True), when("dataset", "synthetic")


def _without_history(config: Config, name: str) -> str:
    base = f" --synthesis_type={config.synthesis_type}" if config.synthesis_type == "none" else ""
    return f"with --backbone={config.backbone}{base}, which draws no histories; leave it out"


READS_HISTORY = Need(lambda config: BACKBONES[config.backbone].history(config) is not None, _without_history)
DRAWS_HISTORY = Need(lambda config: BACKBONES[config.backbone].history(config) == "sampled", _without_history)
TOWERS = Need(
    lambda config: config.synthesis_type != "none",
    lambda config, name: "with --synthesis_type=none, whose towers have widths of their own; leave it out",
)
READ_FROM_FILES = Need(
    lambda config: config.dataset != "synthetic",
    lambda config, name: "with --dataset=synthetic, which is made and not read; leave it out",
    "dataset",
)
TRACKED = when("wandb_mode", "online", "offline")

_asked = partial(setting, group="What to do")
_data = partial(setting, group="Data")
_model = partial(setting, group="Model and history synthesis")
_fair = partial(setting, group="Fairness")
_reranked = partial(setting, group="Re-ranking", modes=JUDGED_OR_SERVED)
_trained = partial(setting, group="Optimisation")
_evaluated = partial(setting, group="Evaluation")
_run = partial(setting, group="Run")


# fmt: off
@dataclass(frozen=True)
class Request:
    """What is asked of the program beside a run's settings."""

    mode: str = _asked("train", "train (and test once); evaluate a checkpoint anew; recommend from one; score rankings of another program; compare finished runs", choices=MODES, modes=tuple(MODES))
    config: Path | None = _asked(None, "A run's config.json, or its folder, to take settings from; flags of this command line win, and where the run's files go is not taken")
    checkpoint: Path | None = _asked(None, "The checkpoint.pt of a run, or the run's folder", modes=("evaluate", "recommend"), required=True)
    users: tuple[str, ...] = _asked([], "The data set's own user ids, comma-separated, or all", modes=("recommend",))
    control: str | None = _asked(None, "One of the settings that a fairness method leaves open after training. None: evaluate all, recommend by the first", modes=("evaluate", "recommend"))
    recommendations: Path | None = _asked(None, "CSV or parquet file to write instead of printing", check=check_table_path, modes=("recommend",))
    rankings: Path | None = _asked(None, "Rankings by another program, with the data set's own ids (parquet, CSV, TSV or a TREC run, gzip or not), or a run's recommendations.parquet; FILE:LIST takes one of several lists", modes=("score",), required=True)
    runs: tuple[str, ...] = _asked([], "Folders of finished runs, comma-separated, also of --seeds; the first is what the others are compared with", modes=("compare",), required=True)
    seeds: tuple[int, ...] = _asked([], "Several seeds, comma-separated, in processes side by side where cores allow", low=0)
    export_split: Path | None = _asked(None, "Folder for the split's files, with the data set's own ids, for other programs", needs=(when("dry_run", True),))


@dataclass(frozen=True)
class Config:
    """Every setting of a run after presets are filled in."""

    dataset: str = _data("ml", "Data set: ml = MovieLens-1M, bx = BookCrossing, modcloth = ModCloth, synthetic = generated", choices=READERS, modes=("train", "score"))
    dataset_dir: Path = _data(DEFAULT_DATASET_DIR, "Folder that holds the data sets' folders (datasets/README.md shows the trees)", needs=(READ_FROM_FILES,), modes=JUDGED_OR_SERVED, free=True)
    cache_dir: Path = _data(Path("~/.cache/fabuhs"), "Folder for data as read and title vectors, reused between runs", modes=JUDGED_OR_SERVED, free=True)
    title_encoder: str = _data(None, "Encoder of item titles where the data have them: a sentence-transformers name, a local model folder, or 'hash' (deterministic stand-in)", default_from="preset", modes=("train", "score"), network=True)
    max_bad_rows: float = _data(0.001, "Largest fraction of malformed rows of a file; above it the run stops", low=0, high=1, needs=(READ_FROM_FILES,), modes=("train", "score"))
    keep_incomplete_users: bool = _data(False, "BookCrossing: keep users with a missing age or country, as unknown", needs=(when("dataset", "bx"),), modes=("train", "score"))
    user_attribute: tuple[str, ...] = _data(None, "Sensitive attributes, comma-separated: the first is acted on, all are reported. ml: gender, age, occupation; bx: age, country; modcloth: size", default_from="preset", modes=JUDGED)
    synthetic_users: int = _data(600, "Synthetic data: number of users", low=10, needs=(SYNTHETIC,), modes=("train", "score"))
    synthetic_items: int = _data(400, "Synthetic data: number of items", low=10, needs=(SYNTHETIC,), modes=("train", "score"))
    synthetic_interactions: int = _data(24_000, "Synthetic data: number of interactions", low=100, needs=(SYNTHETIC,), modes=("train", "score"))

    backbone: str = _model("sparsenn", "Recommender", choices=BACKBONES, network=True)
    backbone_checkpoint: Path | None = _model(None, "Run folder or checkpoint.pt of a run of --fairness_method=none, whose backbone a method of two stages takes instead of training one")
    embedding_dim: int = _model(None, "Width of embeddings: of each feature for sparsenn, of users and items for the others", low=1, default_from="preset", network=True)
    graph_layers: int = _model(None, "Layers of a graph's convolution", low=0, default_from="preset", network=True)
    graph_norm: str = _model(None, "Weights of a graph's edges: symmetric = 1/sqrt(d_u d_i); rows = means over a node and its neighbours, of which the node itself is one", choices=("symmetric", "rows"), default_from="preset", network=True)
    table_start: str = _model(None, "How id tables start: normal = with the backbone's own deviation, or by Xavier", choices=("normal", "xavier_normal", "xavier_uniform"), default_from="preset")
    ncf_form: str = _model(None, "Form of ncf: neumf = the paper's, ncf_bpr = FADE's: four layers of width 64 without biases, a bias for each user and item, all weights started with deviation 0.01", choices=NCF_FORMS, default_from="preset", needs=(when("backbone", "ncf"),), network=True)
    synthesis_type: str = _model("mean", "User history synthesis; none = two-tower base model without a history", choices=SYNTHESIZERS, network=True)
    sample_size: int = _model(15, "Synthesis horizon N: items drawn from the user's history", low=1, needs=(READS_HISTORY,), network=True)
    attention_heads: int = _model(1, "Heads of attention; they must divide 96 and the width of the items' features (columns x --embedding_dim)", low=1, needs=(when("synthesis_type", "attention"),), network=True)
    scorer: str = _model("dot_compress", "How a user and an item vector are scored", choices=SCORERS, network=True)
    user_hidden: tuple[int, ...] = _model(None, "Hidden widths of the user tower, comma-separated", low=1, repeats=True, default_from="preset", needs=(TOWERS,), network=True)
    item_hidden: tuple[int, ...] = _model(None, "Hidden widths of the item tower, comma-separated", low=1, repeats=True, default_from="preset", needs=(TOWERS,), network=True)
    sampling_softmax_temp: float = _model(None, "Temperature T of the tail-biased draw p(i|u) ~ exp((1/d_i)/T); inf = uniform", above=0, infinite=True, default_from="preset", needs=(DRAWS_HISTORY,), network=True)
    upstream_compat: bool = _model(False, "Restore upstream's estimator: a history per scored row, BookCrossing target left in, repeats, random GRU state, validation item a test candidate", network=True)

    enable_fairness: bool = _fair(False, "Enable the fairness framework")
    fairness_method: str = _fair("fabuhs", "Fairness method", choices=METHODS, needs=(FAIR,))
    method_option: tuple[str, ...] = _fair([], "name=value option of the fairness method; may be repeated", flag_each=True, needs=(FAIR,))
    fairness_sampling: bool = _fair(False, "Enable upstream fairness-constrained sampling", needs=(FAIR, DRAWS_HISTORY))
    fairness_weight: float = _fair(0.5, "Interpolation alpha: 1 = catalogue parity (BUHS), 0 = group parity", low=0, high=1, needs=(when("fairness_sampling", True),))
    adversarial_lambda_user: float = _fair(0.1, "Weight of the user-side conditional adversary", low=0, needs=(FAIR,))
    adversarial_lambda_item: float = _fair(0.1, "Weight of the item-side conditional adversary", low=0, needs=(FAIR,))
    adversarial_ramp: float = _fair(0.1, "Fraction of the planned steps over which both weights rise from 0", low=0, high=1, needs=(FAIR,))
    item_adversary: str = _fair("popularity", "What the item-side adversary predicts: head/tail, or the user's attribute", choices=("popularity", "user_attribute"), needs=(FAIR,))
    adversary_input: str = _fair("user", "What the user-side adversary reads: the user vector, or also its product with the item vector", choices=("user", "pair"), needs=(FAIR,))
    mask_sensitive_feature: bool = _fair(None, "Leave the sensitive attribute out of the user tower's inputs", default_from="on with --enable_fairness", network=True)

    rerank_fair: bool = _reranked(False, "Re-rank by exposure after training", needs=(FAIR,))
    rerank_alpha: float = _reranked(0.2, "Weight of the exposure deficit against relevance", low=0, high=1, needs=(RERANKED,))
    exposure_floor: float = _reranked(0.1, "Guaranteed share of discounted exposure for tail items in each list", low=0, high=1, needs=(RERANKED,))
    rerank_pool: int = _reranked(100, "Candidates per user that re-ranking may use", low=1, needs=(RERANKED,))
    rerank_target: str = _reranked("catalogue", "Target exposure of a group: its share of the catalogue, or of train interactions", choices=("catalogue", "train"), needs=(RERANKED,))

    recipe: str = _trained("upstream", "Presets of this group's flags: upstream = the published ones, tuned = softmax loss, large batches", choices=RECIPES)
    epochs: int = _trained(None, "Largest number of epochs", low=1, default_from="preset")
    batch_size: int = _trained(None, "Positives per step", low=2, default_from="preset")
    lr: float = _trained(None, "Learning rate of Adam", above=0, default_from="preset")
    num_negatives: int = _trained(None, "Uniform negatives per positive", low=1, default_from="preset")
    in_batch_negatives: int = _trained(None, "Other positives of the batch as further negatives per positive", low=0, default_from="preset, or as many as --num_negatives")
    loss: str = _trained(None, "Ranking loss of a positive against its negatives", choices=LOSSES, default_from="preset")
    l2: float = _trained(None, "Weight of the mean squared norm of a row's vectors, for backbones that know ids alone", low=0, default_from="preset")
    weight_decay: float = _trained(None, "Weight decay of the optimisers (Adam's own, added to the gradient)", low=0, default_from="preset")
    patience: int = _trained(None, "Epochs without a better validation score before stopping", low=1, default_from="preset")
    sparse_updates: bool = _trained(False, "Update only those rows of user tables that a step reads: faster with many users, not exact (the momentum of other rows waits)")
    device: str = _trained("auto", "Where to compute; cuda is an error where there is no GPU", choices=("auto", "cpu", "cuda"), modes=SERVED, free=True)
    precision: str = _trained("fp32", "Arithmetic of the training step's matrix products; evaluation is always fp32", choices=("fp32", "bf16"))

    protocol: str = _evaluated("loo", "Evaluation protocol", choices=PROTOCOLS, modes=JUDGED)
    protocol_option: tuple[str, ...] = _evaluated([], "name=value option of the protocol; may be repeated", flag_each=True, modes=JUDGED)
    warm_threshold: float = _evaluated(None, "Share of items, the most popular ones, that count as head", above=0, high=1, default_from="preset", modes=JUDGED)
    eval_k: tuple[int, ...] = _evaluated(None, "List lengths K, comma-separated; the first selects the epoch and fills the table", low=1, default_from="preset", modes=tuple(MODES))
    eval_every: int = _evaluated(None, "Epochs between validations; the last epoch always has one", low=1, default_from="preset")
    eval_history_draws: int = _evaluated(1, "Histories per user whose vectors are averaged in evaluation", low=1, needs=(DRAWS_HISTORY,), modes=SERVED)
    eval_negatives: int | None = _evaluated(None, "Rank against this many sampled items instead of the full catalogue", low=1, modes=("train", "evaluate"))
    eval_block_mb: int = _evaluated(256, "Most memory for scoring and ranking a block of users, in MiB", low=1, modes=SERVED, free=True)

    seed: int = _run(0, "Seed of every random stream", low=0, modes=("train", "score"))
    output_dir: Path = _run(Path("./runs"), "Folder for run folders", modes=PLACED, free=True, fed_back=False)
    run_name: str = _run(None, "Name of the run's folder", default_from="data set, method, seed and time", modes=PLACED, free=True, fed_back=False)
    beside: tuple[str, ...] = _run([], "Finished runs on the same split, comma-separated, whose lists stand beside this run's in the pictures of accuracy against fairness; RUN:LIST takes one of several lists", modes=("train", "evaluate"), free=True, fed_back=False)
    resume: bool = _run(False, "Continue the run in the folder named by --output_dir and --run_name from its last saved state; without one, start it", free=True, fed_back=False)
    checkpoint_every: str = _run("1", "Epochs between saved states, or minutes with min behind (10min); a run that SIGINT or SIGTERM ends saves one too", check=saving_interval, free=True)
    keep_phases: bool = _run(False, "Keep the weights of every phase as checkpoint-PHASE.pt, for --mode=evaluate and --mode=recommend", free=True)
    wandb_mode: str = _run("disabled", "Weights & Biases tracking", choices=("disabled", "offline", "online"), modes=JUDGED, free=True)
    wandb_project: str = _run("fabuhs", "Weights & Biases project", needs=(TRACKED,), modes=JUDGED, free=True)
    dry_run: bool = _run(False, "Print phases, sizes, parameters and a time estimate; train nothing, and write nothing but --export_split", free=True, fed_back=False)
# fmt: on

    @property
    def method(self) -> str:
        """The method that trains: `none` (the unfair baseline) unless fairness is enabled."""
        return self.fairness_method if self.enable_fairness else UNFAIR

    @property
    def attribute(self) -> str:
        """The sensitive attribute that methods act on; further ones are reported only."""
        return self.user_attribute[0]

    def as_json(self) -> dict:
        """Give plain values, ready for JSON, which has no infinity."""
        values = dataclasses.asdict(self)
        return {
            name: str(value) if isinstance(value, Path) or value == math.inf else value
            for name, value in values.items()
        }

    @classmethod
    def from_json(cls, values: dict) -> Config:
        """Read the settings that `as_json` wrote, in this version or an earlier one.

        A setting that is missing takes its default; one that is unknown is a ValueError (Decision 43).
        """
        restored = restored_settings(values, cls)
        missing = {name: declaration.converted(declaration.default) for name, declaration in declared(cls).items() if name not in restored}
        if missing:
            whole = filled(restored | missing)
            missing = {name: declared(cls)[name].converted(whole[name]) for name in missing}
        return cls(**restored, **missing)


def restored_settings(values: dict, kind: type[Config] = Config) -> dict:
    """Turn values that `as_json` wrote into those of a Config; an unknown setting is a ValueError."""
    known = declared(kind)
    for name in values:
        if name not in known:
            raise ValueError(f"unknown setting {name}{suggestion(name, known)}")
    return {name: known[name].converted(value) for name, value in values.items()}


def differences(then: Config, now: Config, matters: Callable[[Setting], bool]) -> list[str]:
    """Say in which of the settings that matter two runs differ: "--lr was 0.001, is 0.5"."""
    names = [name for name, one in declared(type(then)).items() if matters(one)]
    pairs = {name: (getattr(then, name), getattr(now, name)) for name in names}
    return [f"--{name} was {shown(old)}, is {shown(new)}" for name, (old, new) in pairs.items() if old != new]


def network_name(backbone: str, synthesis_type: str) -> str:
    """Give the short name of a network: the backbone, or SparseNN's synthesis type."""
    return synthesis_type if backbone == "sparsenn" else backbone


def shown_network(backbone: str, synthesis_type: str) -> str:
    """Give the long name of a network: the backbone, and SparseNN's synthesis type behind it."""
    return f"{backbone} ({synthesis_type})" if backbone == "sparsenn" else backbone
