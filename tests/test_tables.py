import json

import pandas as pd
import pytest

from steerlib.tables import (
    append_part,
    atomic_path,
    has_table,
    read_manifest,
    read_table,
    results_folder,
    write_manifest,
    write_table,
)

SPLITS = pd.DataFrame({"conversation_id": ["c1", "c2"], "user_id": ["u1", "u1"], "split": ["train", "dev"]})


def test_parts_of_a_table_are_read_back_as_one(tmp_path):
    assert not has_table(tmp_path, "splits")
    append_part(tmp_path, "splits", SPLITS.iloc[:1], part="a")
    append_part(tmp_path, "splits", SPLITS.iloc[1:], part="b")
    pd.testing.assert_frame_equal(read_table(tmp_path, "splits"), SPLITS)


def test_writing_a_table_replaces_all_its_parts(tmp_path):
    append_part(tmp_path, "splits", SPLITS, part="a")
    write_table(tmp_path, "splits", SPLITS.iloc[:1])
    assert read_table(tmp_path, "splits").conversation_id.tolist() == ["c1"]


def test_a_key_that_stands_in_two_parts_is_refused_showing_it(tmp_path):
    append_part(tmp_path, "splits", SPLITS, part="a")
    append_part(tmp_path, "splits", SPLITS.iloc[:1], part="b")
    with pytest.raises(ValueError, match=r"1 rows repeat a key, the first is {'conversation_id': 'c1'}"):
        read_table(tmp_path, "splits")


def test_a_missing_or_unknown_column_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"missing columns \['split'\], unknown columns \['spilt'\]"):
        append_part(tmp_path, "splits", SPLITS.rename(columns={"split": "spilt"}), part="a")
    assert not has_table(tmp_path, "splits")


def test_a_write_that_fails_leaves_the_old_file_and_no_partial(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_a_table_that_is_not_there_yet_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="table 'splits' is not in"):
        read_table(tmp_path, "splits")
    with pytest.raises(KeyError, match="no table is called 'split'"):
        append_part(tmp_path, "split", SPLITS, part="a")


def test_the_manifest_keeps_one_record_a_stage(tmp_path):
    write_manifest(tmp_path, "01", {"seed": 1}, seconds=1.23)
    write_manifest(tmp_path, "02", {"seed": 2}, seconds=2)
    write_manifest(tmp_path, "01", {"seed": 3}, seconds=1)
    manifest = read_manifest(tmp_path)
    assert [manifest["01"]["params"], manifest["02"]["params"]] == [{"seed": 3}, {"seed": 2}]
    assert manifest["01"]["versions"]["torch"]
    assert json.loads((tmp_path / "manifest.json").read_text()) == manifest


@pytest.mark.parametrize("name", ["", "../elsewhere", "a/b", ".hidden"])
def test_a_run_that_would_leave_the_results_folder_is_refused(name):
    with pytest.raises(ValueError, match="run must be a plain folder name"):
        results_folder(name)
