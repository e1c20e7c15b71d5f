"""Settings are declared once: flags, --help, refusals, presets, files of settings and FLAGS.md follow from that."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

import main
from data import datareader
from data.datareader import READERS
from data.messages import WIDTH
from data.protocols import PROTOCOLS
from model import BACKBONES
from model.modes.train import execute
from model.runs import presets
from model.runs.config import Config, Request
from model.runs.manual import FLAGS as PAGE
from model.runs.manual import flag_tables, flags_page, help_text
from model.runs.setting import declared, setting, when
from model.runs.settings import is_read, preset_lines
from tests.support.runs import FLAGS, TINY, refused, result_bytes, run_main
from tests.support.settings import SETTINGS

ALL = declared(Request) | declared(Config)
NAMES = f"allowed is one of {', '.join(READERS)}"


def settings_of(*arguments, kind=Config):
    """The settings that a command line gives."""
    values = flags.FlagValues()
    main.define_flags((declared(Request) | declared(kind)).values(), values)
    values(["main.py", *arguments])
    return main.settings_from_flags(values, kind)


# Declared once


@dataclass(frozen=True)
class Extended(Config):
    """Settings, and one more: nothing but this field is written for it."""

    warmth: float = setting(0.5, "Warmth of the run", group="Run", low=0, high=2, needs=(when("backbone", "pmf"),))


def test_a_new_setting_is_one_field(tmp_path):
    config = settings_of("--backbone=pmf", "--warmth=1.5", "--dataset=synthetic", kind=Extended).config()
    assert config.warmth == 1.5 and settings_of(kind=Extended).config().warmth == 0.5
    assert "--warmth  Warmth of the run (in [0, 2]; default: 0.5)." in help_text("", declared(Extended).values())
    assert "| `--warmth` | float | train |  | Warmth" in flag_tables(declared(Extended).values())
    with pytest.raises(flags.Error, match=r"warmth=3"):
        settings_of("--backbone=pmf", "--warmth=3", kind=Extended)
    with pytest.raises(ValueError, match=r"--warmth=1\.0 has no effect without --backbone=pmf; set both, or leave"):
        settings_of("--warmth=1", kind=Extended)
    with pytest.raises(ValueError, match=r"--warmth=1\.0 has no effect with --mode=recommend; leave it out"):
        settings_of("--mode=recommend", "--checkpoint=x", "--warmth=1", kind=Extended)
    written = json.loads(json.dumps(config.as_json()))
    assert Extended.from_json(written) == config and written["warmth"] == 1.5
    del written["warmth"]
    assert Extended.from_json(written).warmth == 0.5
    (tmp_path / "config.json").write_text(json.dumps(config.as_json()))
    assert settings_of(f"--config={tmp_path}", kind=Extended).config().warmth == 1.5
    # the children of --seeds are given it too
    assert "--warmth=1.5" in settings_of("--backbone=pmf", "--warmth=1.5", kind=Extended).arguments((), {})


def test_every_flag_of_the_program_is_a_setting_and_in_the_help():
    own = {flag.name for flag in flags.FLAGS.flags_by_module_dict()["main"]}
    assert own == set(ALL)
    text = help_text(main.__doc__, ALL.values())
    assert all(f"--{name}  " in text for name in own)
    groups = [line for line in text.splitlines() if line and line.endswith(":") and line[0].isupper()]
    assert groups == list(dict.fromkeys(f"{one.group}:" for one in ALL.values())), "each group once"


def test_the_page_of_flags_is_current():
    assert PAGE.read_text(encoding="utf-8") == flags_page() + "\n", "python -m model.runs.manual > model/FLAGS.md"


@pytest.mark.parametrize("one", ALL.values(), ids=lambda one: one.name)
def test_a_default_is_allowed_and_needs_name_settings(one):
    value = one.converted(one.default)
    if one.kind in ("int", "float", "str", "bool") and one.default_from is None:
        assert type(value).__name__ == one.kind
    assert one.default_from is None or one.default is None
    assert one.choices is None or value is None or value in one.choices
    assert {need.about for need in one.needs} - {None} <= set(ALL)
    assert one.help and not one.help.endswith(".")


# Files of settings


def test_settings_of_an_earlier_version_take_defaults_and_unknown_ones_are_named():
    config = Config(**SETTINGS)
    written = json.loads(json.dumps(config.as_json()))
    assert Config.from_json(written) == config
    for name in ("eval_block_mb", "weight_decay", "embedding_dim", "in_batch_negatives", "mask_sensitive_feature"):
        assert Config.from_json({other: value for other, value in written.items() if other != name}) == config
    with pytest.raises(ValueError, match="unknown setting sample_sise; did you mean sample_size"):
        Config.from_json(written | {"sample_sise": 3})


def test_a_run_comes_again_from_its_config(tmp_path):
    values = {"enable_fairness": True, "fairness_sampling": True, "fairness_weight": 0.25, "seed": 3, "epochs": 1}
    result = run_main(tmp_path, **values, method_option=["discriminator_steps=2"])
    again = ["--config=" + str(tmp_path / "run" / "config.json"), f"--output_dir={tmp_path / 'again'}"]
    config = settings_of(*again, "--run_name=run").config()
    first = Config.from_json(json.loads((tmp_path / "run" / "config.json").read_text()))
    assert config == replace(first, output_dir=tmp_path / "again")
    execute(config, 0.0)
    assert result_bytes(tmp_path / "again") == result_bytes(tmp_path) and result["metrics"]


def test_flags_win_over_a_config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(Config(**SETTINGS | {"rerank_fair": True, "seed": 5, "fairness_weight": 0.5}).as_json()))
    asked = settings_of(f"--config={path}", "--lr=0.5", "--eval_k=7", "--sample_size=15", "--rerank_fair=False")
    config = asked.config()
    # sample_size repeats the default, and yet it is the user's
    assert (config.lr, config.eval_k, config.sample_size, config.rerank_fair) == (0.5, (7,), 15, False)
    assert (config.seed, config.batch_size, config.user_hidden) == (5, 64, (16,))
    # where the file's run went is not taken over
    assert config.run_name != "test" and config.output_dir == Path("runs") and not config.resume
    # what the file says and nothing would read beside the flags falls back to its default
    plain = settings_of(f"--config={path}", "--enable_fairness=False").config()
    assert (plain.method, plain.rerank_fair, plain.rerank_pool, plain.batch_size) == ("none", False, 100, 64)
    assert settings_of(f"--config={path}").config().rerank_pool == 20
    with pytest.raises(ValueError, match=r"--rerank_alpha=0\.5 has no effect"):
        settings_of(f"--config={path}", "--enable_fairness=False", "--rerank_alpha=0.5")
    # several seeds take the place of the file's, and each is told all that the file says
    several = settings_of(f"--config={path}", "--seeds=1,2", "--run_name=both")
    command = several.arguments({"seeds", "config"}, {"seed": 1})
    assert settings_of(*command).config() == replace(several.config(), seed=1)


def test_a_config_that_cannot_be_read_is_one_line(tmp_path, capsys):
    path = tmp_path / "config.json"
    assert "--config=" in refused(capsys, tmp_path, config=str(path))
    path.write_text('{"lr": 0.1, "colour": 2}')
    assert "unknown setting colour" in refused(capsys, tmp_path, config=str(path))
    path.write_text('{"backbone": "bprfm"}')
    assert "--backbone=bprfm: allowed is one of" in refused(capsys, tmp_path, config=str(path))
    path.write_text("[1, 2")
    assert "allowed is the config.json of a run" in refused(capsys, tmp_path, config=str(path))


def test_flags_come_from_a_flagfile(tmp_path):
    path = tmp_path / "flags.txt"
    path.write_text("# mine\n--dataset=synthetic\n--enable_fairness\n--user_attribute=age,gender\n--lr=0.25\n")
    config = settings_of(f"--flagfile={path}", "--lr=0.5").config()
    assert (config.dataset, config.method, config.user_attribute, config.lr) == (
        "synthetic", "fabuhs", ("age", "gender"), 0.5
    )  # fmt: skip


# Presets


def test_presets_are_merged_in_one_order(monkeypatch):
    network = type("Toy", (BACKBONES["pmf"],), {"defaults": {"lr": 2, "l2": 2, "epochs": 2, "patience": 2, "loss": 2}})
    network.defaults_under = {"loo": {"epochs": 4, "patience": 4, "loss": 4}}
    network.defaults_on = {"ml": {"patience": 5, "loss": 5}}
    monkeypatch.setitem(BACKBONES, "toy", network)
    monkeypatch.setattr(PROTOCOLS["loo"], "presets", {"l2": 3, "epochs": 3, "patience": 3, "loss": 3})
    monkeypatch.setitem(presets.RECIPES, "new", {"loss": 6})
    found = presets.origins("ml", "new", "toy", "loo")
    assert [found[name] for name in ("batch_size", "lr", "l2", "epochs", "patience", "loss")] == [
        (1024, "data set ml"), (2, "backbone toy"), (3, "protocol loo"), (4, "backbone toy under protocol loo"),
        (5, "backbone toy on data set ml"), (6, "recipe new"),
    ]  # fmt: skip


def test_presets_name_settings_that_are_left_open():
    for dataset in READERS:
        for recipe in presets.RECIPES:
            for backbone in BACKBONES:
                for protocol in PROTOCOLS:
                    named = presets.preset(dataset, recipe, backbone, protocol)
                    assert named.keys() <= {name for name, one in ALL.items() if one.default_from is not None}


def test_presets_say_which_data_they_are_made_for():
    assert datareader.PRESETS.keys() == datareader.MADE_FOR.keys()
    assert {name for backbone in BACKBONES for name in BACKBONES[backbone].defaults_on} <= datareader.MADE_FOR.keys()
    values = {"dataset": "synthetic", "recipe": "upstream", "backbone": "bprmf", "protocol": "fda"}
    values |= {"batch_size": 512, "epochs": 30, "lr": 0.2}
    layers = presets.in_effect(values)
    assert layers.keys() == {"batch_size", "epochs"}, "another value is no preset"
    assert {(layer.dataset, layer.of_protocol) for layer in layers.values()} == {("synthetic", False)}
    (layer,) = presets.in_effect(values | {"dataset": "bx", "batch_size": 40_960}).values()
    assert (layer.dataset, layer.of_protocol) == ("ml", True)


def test_a_dry_run_says_where_each_setting_comes_from(capsys):
    values = {**TINY, "user_hidden": None, "item_hidden": None, "backbone": "ncf", "batch_size": None, "dry_run": True}
    with flagsaver.flagsaver(**values):
        main.main(["main.py"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH
    printed = text.replace("\n    ", " ").splitlines()
    lines = {line.partition(": ")[0]: line.partition(": ")[2] for line in printed if line.startswith("  ")}
    of_backbone = (
        "embedding_dim=64, table_start=normal, ncf_form=neumf, in_batch_negatives=0, loss=cross_entropy, l2=0.0"
    )
    assert lines["  backbone ncf"] == of_backbone
    assert lines["  backbone ncf on data set synthetic"] == "batch_size=512, lr=0.005"
    assert lines["  given"] == "epochs=2, num_negatives=4, eval_k=5,10"
    assert "warm_threshold=0.2" in lines["  data set synthetic"] and "user_hidden" not in str(lines)


def test_rules_that_fill_a_setting_say_so():
    lines = preset_lines(Config(**SETTINGS))
    assert "on with --enable_fairness: mask_sensitive_feature=True" in lines
    assert "preset, or as many as --num_negatives: in_batch_negatives=2" in lines


# Flags that nothing reads


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--synthesis_type=none --sample_size=5", "--synthesis_type=none, which draws no histories; leave it out"),
        ("--synthesis_type=none --sampling_softmax_temp=1", "--synthesis_type=none, which draws no histories"),
        ("--synthesis_type=none --eval_history_draws=2", "--synthesis_type=none, which draws no histories"),
        ("--synthesis_type=none --enable_fairness --fairness_sampling", "draws no histories"),
        ("--synthesis_type=none --enable_fairness --fairness_weight=0.1", "without --fairness_sampling=True"),
        ("--synthesis_type=none --user_hidden=5", "widths of their own"),
        ("--backbone=bprmf --eval_history_draws=2", "--backbone=bprmf, which draws no histories"),
        ("--enable_fairness --fairness_method=fda --loss=bpr", "--loss=bpr has no effect with --fairness_method=fda"),
        ("--enable_fairness --fairness_method=fda --adversary_input=pair", "--fairness_method=fda; leave it out"),
        ("--backbone=slim --lr=0.5", "--lr=0.5 has no effect with --backbone=slim; leave it out"),
        ("--wandb_project=x", "without --wandb_mode=online"),
        ("--dataset_dir=x", "--dataset_dir=x has no effect with --dataset=synthetic, which is made and not read"),
        ("--max_bad_rows=0.5", "--max_bad_rows=0.5 has no effect with --dataset=synthetic"),
        ("--eval_k=5,7 --seeds=1,2 --mode=evaluate --checkpoint=x", "--seeds=1,2 has no effect with --mode=evaluate"),
    ],
)
def test_a_flag_that_nothing_would_read_is_refused(arguments, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        settings_of("--dataset=synthetic", *arguments.split())


def test_the_loss_of_a_warm_up_is_read():
    values = {"fairness_method": "fda", "method_option": ("warmup_epochs=2",)}
    assert is_read("loss", Config(**SETTINGS | values))


def test_heads_that_do_not_divide_a_width_are_one_line(tmp_path, capsys):
    values = {"synthesis_type": "attention", "attention_heads": 3, "embedding_dim": 50}
    error = refused(capsys, tmp_path, **values)
    assert "--attention_heads=3 must divide both the width" in error and "--embedding_dim" in error


def test_several_seeds_export_the_split_of_the_first(tmp_path):
    values = {**TINY, "seeds": ["4", "5"], "dry_run": True, "export_split": str(tmp_path / "split")}
    with flagsaver.flagsaver(**values):
        main.main(["main.py"])
    assert json.loads((tmp_path / "split" / "split.json").read_text())["seed"] == 4


# Messages


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--dataset=synthtic", f"flag --dataset=synthtic: {NAMES}; did you mean synthetic?"),
        ("--device=cdua", "did you mean cuda?"),
        ("--backbone=lightgnc", "did you mean lightgcn?"),
        ("--dataset=netflix", NAMES),
        ("--sampel_size=3", "Did you mean: sample_size"),
        ("--flagfile=nowhere.txt", "error: Unable to open flagfile"),
    ],
)
def test_a_misspelt_choice_gets_a_suggestion(capsys, argument, words):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as caught:
        main.parse(["main.py", argument])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and words in error and error.count("\n") == 1
    assert "(" not in error.replace("main.py", "") and "[" not in error.replace("[Errno 2]", "")


def test_a_refusal_shows_lists_as_they_are_typed(tmp_path, capsys):
    values = {"enable_fairness": False, "method_option": ["a=1", "b=2"]}
    assert "--method_option=a=1,b=2 has no effect" in refused(capsys, tmp_path, **values)


def test_misspelt_options_and_runs_get_a_suggestion(tmp_path, capsys):
    option = {"enable_fairness": True, "method_option": ["smothing=2"]}
    assert refused(capsys, tmp_path, **option).endswith("; did you mean smoothing?")
    assert refused(capsys, tmp_path, enable_fairness=True, method_option=["smoothing"]).endswith(
        ", solved_discriminator"
    )
    assert refused(capsys, tmp_path, user_attribute=["gendr"]).endswith("; did you mean gender?")
    widths = {"enable_fairness": True, "method_option": ["discriminator_widths=4,0"]}
    assert "--method_option=discriminator_widths=4,0: allowed" in refused(capsys, tmp_path, **widths)
    (tmp_path / "synthetic-mean").mkdir()
    compared = {**{name: FLAGS[name].default for name in TINY}, "mode": "compare", "runs": ["sinthetic-mean", "other"]}
    assert refused(capsys, tmp_path, **compared).endswith("; did you mean synthetic-mean?")


# Quick to start


def test_what_the_program_does_not_load_to_start_nor_a_dry_run_before_it_trains():
    heavy = "torch numpy pandas pyarrow scipy sklearn matplotlib wandb statsmodels pycountry huggingface_hub jinja2"
    later = "sklearn scipy.stats matplotlib jinja2 statsmodels wandb pycountry huggingface_hub sentence_transformers"
    text = """
import sys, main
print(*sys.modules)
from model.modes import setup, train
flags = ["--dataset=synthetic", "--synthetic_users=60", "--synthetic_items=50", "--synthetic_interactions=900"]
main.FLAGS(["main.py", *flags, "--dry_run"])
setup.describe(setup.prepare(main.settings_from_flags().config()))
print(*sys.modules)
"""
    code = [sys.executable, "-c", text]
    found = subprocess.run(code, capture_output=True, text=True, check=True, cwd=PAGE.parents[1])
    to_start, *_, to_train = found.stdout.splitlines()
    assert not set(heavy.split()) & set(to_start.split())
    assert not set(later.split()) & set(to_train.split())
