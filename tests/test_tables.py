"""Tables of a run: schema, parts that are whole or absent, damage that is found, and the one cache."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlib import tables

SPLITS = pd.DataFrame({"conversation_id": ["c1", "c2"], "user_id": ["u1", "u1"], "split": ["train", "dev"]})


VALUES = {"text": st.text(), "n_tokens": st.integers(-(2**63), 2**63 - 1), "kl_to_base": st.floats()}
VALUES |= {"token_ids": st.lists(st.integers(0, 2**31), min_size=1), "stopped": st.booleans()}


@given(rows=st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=5), cut=st.integers(0, 5))
def test_any_rows_come_back_as_they_were_in_one_part_or_two(tmp_path_factory, rows, cut):
    folder = tmp_path_factory.mktemp("run")
    frame = pd.DataFrame(rows).assign(prompt_id=list(map(str, range(len(rows)))))
    frame = frame.reindex(columns=tables.SCHEMA["generations"].columns, fill_value="x").assign(seed=0)
    for part in (frame.iloc[:cut], frame.iloc[cut:]):
        if len(part):
            tables.append_part(folder, "generations", part, part=f"part {part.index[0]}")
    found = tables.read_table(folder, "generations")
    found["token_ids"] = found["token_ids"].map(list)
    pd.testing.assert_frame_equal(found, frame)


REFUSED = {"'c1'": SPLITS.iloc[[0, 0]], "'spilt'": SPLITS.rename(columns={"split": "spilt"})}


@pytest.mark.parametrize("named", REFUSED)
def test_a_key_twice_or_a_misspelt_column_is_refused_before_anything_is_written(tmp_path, named):
    with pytest.raises(ValueError, match=named):
        tables.append_part(tmp_path, "splits", REFUSED[named], part="a")
    with pytest.raises(FileNotFoundError, match="'splits'"):
        tables.read_table(tmp_path, "splits")


def test_a_damaged_part_is_named_and_set_aside_and_the_others_are_read(tmp_path):
    tables.append_part(tmp_path, "splits", SPLITS.iloc[1:], part="b")
    path = tables.append_part(tmp_path, "splits", SPLITS.iloc[:1], part="a")
    whole = path.read_bytes()
    damaged = [whole[:-40], whole[:400], b"", pd.DataFrame({"x": [1]}).to_parquet()]
    for place in np.random.default_rng(0).choice(len(whole), 60, replace=False):  # a bit flipped there
        damaged.append(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
    for data in damaged:
        path.write_bytes(data)
        with pytest.warns(UserWarning, match=r"a\.parquet"):
            assert tables.read_table(tmp_path, "splits").conversation_id.tolist() == ["c2"]
        assert path.with_name("a.parquet.corrupt").read_bytes() == data
        assert not path.exists()
    (path.parent / "b.parquet").write_bytes(b"PAR1")
    with pytest.warns(UserWarning, match=r"b\.parquet"):
        assert not tables.has_table(tmp_path, "splits")  # no sound part is left


def test_a_whole_table_replaces_all_its_parts_and_foreign_files_in_its_folder_are_ignored(tmp_path):
    assert not tables.has_table(tmp_path, "splits")
    tables.append_part(tmp_path, "splits", SPLITS.iloc[1:], part="b")
    folder = tables.write_table(tmp_path, "splits", SPLITS).parent
    for name in (".DS_Store", "notes.txt", "._all.parquet", "all.parquet.corrupt", ".all-x.partial"):
        (folder / name).write_bytes(b"x")
    (folder / "sub").mkdir()
    pd.testing.assert_frame_equal(tables.read_table(tmp_path, "splits"), SPLITS)


def test_a_write_that_fails_leaves_the_old_file_and_no_partial(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), tables.atomic_path(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "old"


def test_the_partial_of_a_process_that_died_is_removed_and_that_of_a_live_one_kept(tmp_path):
    killed = "import os, sys; from pathlib import Path; from steerlib.tables import atomic_path\n"
    killed += "held = atomic_path(Path(sys.argv[1])); held.__enter__(); os._exit(1)"
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "a.txt")], check=False)
    assert len(list(tmp_path.glob("*.partial"))) == 1
    with tables.atomic_path(tmp_path / "b.txt") as alive, tables.atomic_path(tmp_path / "c.txt"):
        assert set(tmp_path.glob(f"*~{os.getpid()}~*")) == set(tmp_path.glob("*.partial")) >= {alive}


def test_the_manifest_holds_one_record_a_stage(tmp_path):
    tables.write_manifest(tmp_path, "01", {"seed": 1}, seconds=1.23)
    tables.write_manifest(tmp_path, "02", {"seed": 2}, seconds=2)
    tables.write_manifest(tmp_path, "01", {"seed": 3}, seconds=1)
    manifest = tables.read_manifest(tmp_path)
    assert [manifest["01"]["params"], manifest["02"]["params"]] == [{"seed": 3}, {"seed": 2}]
    assert manifest["01"]["versions"]["torch"]
    assert {"date", "commit", "command", "machine"} <= manifest["01"].keys()


@pytest.mark.parametrize("text", [b'{"01": {', b"", b"[]", b'{"01": 3}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_manifest_is_set_aside(tmp_path, text):
    (tmp_path / "manifest.json").write_bytes(text)
    with pytest.warns(UserWarning, match=r"manifest\.json"):
        assert tables.read_manifest(tmp_path) == {}
    assert (tmp_path / "manifest.json.corrupt").read_bytes() == text


def cached(folder, texts, calls=99):
    """The texts of the rows found, and those computed; a text's score is its number in the alphabet."""
    asked = []

    def compute(rows):
        if len(asked) == calls:
            raise KeyboardInterrupt
        asked.append("".join(texts[row] for row in rows))
        return pd.DataFrame({"score": [float(ord(text)) for text in asked[-1]]})

    wanted = pd.DataFrame({"judge": "j", "dimension": "d", "prompt_sha": "p", "text_sha": list(texts)})
    found = tables.cached_rows(folder, "judged", wanted, compute, unit="text", what="test", chunk=2)
    return "".join(chr(int(score)) for score in found.score), "".join(asked)


def test_each_key_is_computed_once_and_rows_follow_the_keys(tmp_path):
    assert cached(tmp_path, "abacb") == ("abacb", "abc")
    assert cached(tmp_path, "dcbd") == ("dcbd", "d")
    assert cached(tmp_path, "") == ("", "")


def test_a_kill_loses_at_most_one_chunk_and_rows_of_a_damaged_part_are_computed_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, "abcd", calls=1)
    assert cached(tmp_path, "abcd") == ("abcd", "cd")
    part = sorted((tmp_path / "tables" / "judged").glob("*.parquet"))[0]
    lost = "".join(pd.read_parquet(part).text_sha)
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=part.name):
        assert cached(tmp_path, "abcd") == ("abcd", lost)
    assert len(tables.read_table(tmp_path, "judged")) == 4


def test_a_bar_in_batch_writes_its_count_to_the_file(tmp_path, monkeypatch):
    file = tmp_path / "03.progress"
    monkeypatch.setenv(tables.PROGRESS_FILE, str(file))
    with tables.progress_bar(10, what="sweep", unit="answer", done=4) as bar:
        bar.update(6)
    assert "sweep:  40%" in file.read_text() and "4/10" in file.read_text()
