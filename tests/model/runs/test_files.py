"""The files of a run: written whole or not at all, the same bytes for the same values, and the folder they lie in."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.runs.files import append_jsonl, atomic_path, reserve_run_dir, write_json

NAN = float("nan")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def undefined_as_none(value):
    if isinstance(value, dict):
        return {key: undefined_as_none(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [undefined_as_none(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


@settings(max_examples=50, deadline=None)
@given(value=json_values)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "value.json"
    write_json(path, value)
    assert json.loads(path.read_text(encoding="utf-8")) == undefined_as_none(value)


def test_json_is_sorted_exact_and_repeatable(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    write_json(first, {"b": np.float64(0.1) + 0.2, "a": np.array([1, 2]), "c": np.float32("nan"), "d": np.bool_(True)})
    write_json(second, {"d": True, "c": NAN, "a": [1, 2], "b": 0.30000000000000004})
    assert first.read_bytes() == second.read_bytes()
    expected = '{"a": [1, 2], "b": 0.30000000000000004, "c": null, "d": true}'
    assert json.dumps(json.loads(first.read_text())) == expected
    with pytest.raises(ValueError, match=r"\$\.a\.b\[1\] is inf"):
        write_json(first, {"a": {"b": [0, math.inf]}})
    with pytest.raises(ValueError, match=r"\$\.when is a set"):
        write_json(first, {"when": {1}})
    assert first.read_bytes() == second.read_bytes()


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.json"]
    with atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["result.json"]


def test_jsonl_survives_a_killed_write(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, {"epoch": 1, "valid/ndcg@10": 0.25})
    append_jsonl(path, {"epoch": 2, "valid/ndcg@10": NAN, "title": "é"})
    with open(path, "a") as file:
        file.write('{"epoch": 3, "valid/nd')
    rows = [{"epoch": 1, "valid/ndcg@10": 0.25}, {"epoch": 2, "valid/ndcg@10": None, "title": "é"}]
    append_jsonl(path, {"epoch": 3})
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [*rows, {"epoch": 3}]


def test_run_folder(tmp_path):
    folder = reserve_run_dir(tmp_path / "runs", "first")
    assert folder == tmp_path / "runs" / "first" and folder.is_dir() and not list(folder.iterdir())
    assert reserve_run_dir(tmp_path / "runs", "first") == folder
    for name in ("config.json", "result.json"):
        (folder / name).write_text("{}")
        with pytest.raises(ValueError, match=rf"already holds a run \({name}\).*--run_name.*--output_dir.*--resume"):
            reserve_run_dir(tmp_path / "runs", "first")
        (folder / name).unlink()
    for name in ("", "..", "a/b"):
        with pytest.raises(ValueError, match="plain folder name"):
            reserve_run_dir(tmp_path, name)


def test_run_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write to .*Not a directory.*--output_dir"):
        reserve_run_dir(tmp_path / "file", "run")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(ValueError, match=r"cannot write to .*run \(Permission denied\)"):
        reserve_run_dir(tmp_path, "run")
