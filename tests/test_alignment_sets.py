import json

import pandas as pd
import pytest
from studies.alignment import SETS, alignment_prompts

from steerlib.tables import SCHEMA

FELT = [("sad", i) for i in range(4)] + [("proud", i) for i in range(4)]
ROWS = {
    "empathetic": [{"category": c, "prompt": f"I felt {c}, time {i}."} for c, i in FELT],
    "dialogsum": [{"dialogue": f"#A#: {i}.\n#B#: Bye.", "summary1": f"Greeting {i}."} for i in range(3)],
    "beavertails": [{"prompt": f"{c}, {i}?", "category": c} for c in "abc" for i in range(3)],
    "harmfulqa": [{"topic": "T", "question": f"How {i}?"} for i in (0, 1, 1)],  # one is repeated
    "truthfulqa": [{"Category": "Law", "Question": f"{i}?", "Best Answer": f"It is {i}."} for i in range(5)],
}


@pytest.fixture
def folder(tmp_path):
    for name, rows in ROWS.items():
        (tmp_path / SETS[name].file).write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path


def test_all_sets_make_one_prompts_table_and_a_prompt_with_two_dimensions_is_one_user_on_one_side(folder):
    prompts, report = alignment_prompts(folder, n_per_set=100)
    assert report.set_index("what")["count"]["repeated in harmfulqa"] == 1
    assert list(prompts) == list(SCHEMA["prompts"].columns)
    assert (prompts.category != prompts.shuffled_category).all()
    assert prompts.prompt_id.is_unique
    sizes = {"empathy": 8, "reasoning": 3, "helpfulness": 11, "harmlessness": 11, "honesty": 5}
    assert prompts.groupby("category").size().to_dict() == sizes
    users = prompts.groupby("user_id")[["split", "prompt"]].nunique()
    assert len(users) == 8 + 3 + 11 + 5 and (users == 1).all(axis=None)
    assert not prompts.isna().any().any()
    both = prompts[prompts.category == "empathy"].groupby(["prompt_category", "split"]).size()
    assert both.tolist() == [2, 2, 2, 2]  # dev and test of each category
    row = prompts[prompts.category == "reasoning"].iloc[0]
    assert row.prompt.endswith("#B#: Bye.")
    assert row.accepted.startswith("Greeting")


def test_the_draw_goes_round_the_categories_and_a_larger_one_has_the_smaller_within_it(folder):
    of = {"sets": ["beavertails"], "dimensions": ["harmlessness"]}
    three, five = (alignment_prompts(folder, n_per_set=n, **of)[0] for n in (3, 5))
    assert sorted(three.prompt_category) == ["a", "b", "c"]
    pd.testing.assert_frame_equal(three, five.head(3))
    other, _ = alignment_prompts(folder, n_per_set=5, seed=1, **of)
    assert set(other.prompt_id) != set(five.prompt_id)


def test_the_columns_of_the_hubs_files_are_known_too(folder, monkeypatch):
    files = {
        "truthfulqa/truthful_qa": {"category": "Law", "question": "Is it?", "best_answer": ["It is."]},
        "facebook/empathetic_dialogues": {"context": "sad", "prompt": ["Yes_comma_ I."], "utterance": "Oh."},
        "knkarthick/dialogsum": {"dialogue": "A: b", "summary": ["x", "y", "z"]},
    }

    def fetched(dataset, name, *, revision):
        assert revision == ("refs/convert/parquet" if name.startswith("default") else "main")
        path = folder / name.replace("/", "-")
        frame = pd.DataFrame(files[dataset])
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
        return path

    monkeypatch.setattr("studies.alignment.hub_file", fetched)
    prompts, report = alignment_prompts(n_per_set=9, sets=["truthfulqa", "dialogsum", "empathetic"])
    assert prompts.accepted.tolist() == ["It is.", "x", ""]
    assert prompts.prompt.iloc[2] == "Yes, I."
    assert report.set_index("what")["count"]["repeated in dialogsum"] == 2


def test_what_cannot_be_drawn_is_refused_before_a_file_is_read(tmp_path):
    for wanted, named in (
        ({"sets": ["trivia"]}, "'trivia'"),
        ({"dimensions": ["truth"]}, "'truth'"),
        ({"sets": ["truthfulqa"], "dimensions": ["empathy"]}, "truthfulqa"),
        ({"n_per_set": 0}, "0 prompts"),
    ):
        with pytest.raises(ValueError, match=named):
            alignment_prompts(tmp_path, **({"n_per_set": 4} | wanted))
    with pytest.raises(FileNotFoundError, match=r"empathy_test\.jsonl"):
        alignment_prompts(tmp_path, n_per_set=1)
