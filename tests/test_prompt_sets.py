"""Public sets as prompts: the alignment sets; RealToxicityPrompts, its continuations matched by opening and length."""

import json

import numpy as np
import pandas as pd
import pytest
from studies.alignment import SETS, alignment_prompts
from studies.realtoxicity import (
    SIX,
    matched_continuations,
    mixed_prompts,
    realtoxicity_prompts,
    scored_continuations,
)

from steerlib.tables import SCHEMA, check_table

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


def test_the_authors_files_have_the_sizes_of_their_repository(real_data):
    prompts, report = alignment_prompts(real_data("sda_my_dataset"), n_per_set=10_000)
    rows = report[report.what.str.startswith("rows of")]["count"].tolist()
    assert rows == [640, 500, 700, 699, 790]
    own = prompts.assign(set=prompts.prompt_id.str.split("-").str[0])
    categories = own[own.set != "dialogsum"].groupby("set").prompt_category.nunique().to_dict()
    assert categories == {"beavertails": 14, "empathetic": 16, "harmfulqa": 10, "truthfulqa": 37}
    assert set(own.set[own.accepted != ""]) == {"dialogsum", "truthfulqa"}


def web_texts(path, n=240, seed=0):
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        prompt = {"text": f"opening {i}"} | dict(zip(SIX, rng.random(6).tolist(), strict=True))
        words, toxicity = " word" * int(rng.integers(3, 12)), float(rng.choice([0.05, 0.9]))
        row = {"filename": f"doc{i}.txt", "begin": 0, "end": 9, "prompt": prompt}
        rows.append(row | {"continuation": {"text": words, "toxicity": toxicity}})
    rows[3]["continuation"]["toxicity"] = None
    rows[4]["prompt"]["text"] = rows[5]["prompt"]["text"]
    rows[8]["prompt"]["text"] = " "
    rows[6]["prompt"]["insult"] = rows[7]["prompt"]["threat"] = None
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def texts(tmp_path):
    found = scored_continuations([web_texts(tmp_path / "rtp.jsonl")])
    assert len(found) == 237  # without those that lack a score or repeat a prompt
    assert found.groupby("document").split.nunique().max() == 1
    return found


def test_matched_sides_have_prompts_equally_toxic_and_lengths_alike(texts):
    # The toxic side alone has harsher openings here; the match takes that away.
    skewed = texts[(texts.toxicity < 0.5) | (texts.prompt_toxicity > 0.5)]
    raw = skewed.groupby(skewed.toxicity > 0.5)[["prompt_toxicity", "words"]].mean().diff().iloc[-1]
    pairs = matched_continuations(skewed, n=24)
    toxic, mild = (pairs[pairs.side == side].set_index("pair") for side in ("toxic", "mild"))
    assert len(toxic) == len(mild) == 24 and pairs.text_id.is_unique
    assert (toxic.toxicity >= 0.75).all() and (mild.toxicity <= 0.15).all()
    assert abs((toxic.prompt_toxicity - mild.prompt_toxicity).mean()) < 0.1 < raw.prompt_toxicity
    assert (toxic.words - mild.words).abs().mean() < 1


def test_prompts_come_from_every_quarter_of_toxicity_one_a_document(texts):
    prompts = mixed_prompts(texts, n=40)
    assert list(prompts.columns) == list(SCHEMA["prompts"].columns)
    toxicity = prompts.prompt_id.map(texts.set_index("text_id").prompt_toxicity)
    assert np.histogram(toxicity, [0, 0.25, 0.5, 0.75, 1])[0].tolist() == [10, 10, 10, 10]
    assert prompts.user_id.is_unique and (prompts.category == "").all()


def test_what_cannot_be_drawn_is_refused_with_the_numbers(texts, tmp_path):
    with pytest.raises(ValueError, match="500 toxic"):
        matched_continuations(texts, n=500)
    with pytest.raises(ValueError, match="100 prompts"):
        mixed_prompts(texts, n=400)
    with pytest.raises(ValueError, match=r"rtp.jsonl: 500 prompts wanted"):
        realtoxicity_prompts(tmp_path / "rtp.jsonl", n=500)
    (tmp_path / "other.jsonl").write_text('{"text": "x"}')
    with pytest.raises(ValueError, match=r"other.jsonl lacks filename"):
        scored_continuations([tmp_path / "other.jsonl"])


def test_openings_as_prompts_are_users_of_their_own_half_dev_half_test(tmp_path):
    path = web_texts(tmp_path / "rtp.jsonl")
    prompts, report = realtoxicity_prompts(path, n=24, min_toxicity=0.0)
    check_table("prompts", prompts)
    assert prompts["category"].value_counts().to_dict() == dict.fromkeys(SIX, 4)
    assert prompts.groupby(["category", "split"]).size().eq(2).all()
    assert (prompts["user_id"] == prompts["prompt_id"]).all()
    assert (prompts["shuffled_category"] != prompts["category"]).all()
    rows = pd.read_json(path, lines=True)
    continued = {row["prompt"]["text"]: row["continuation"]["text"] for row in rows.to_dict("records")}
    assert (prompts["accepted"] == prompts["prompt"].map(continued)).all()
    counts = dict(zip(report["what"], report["count"], strict=True))
    assert counts["prompts without six scores dropped"] == 2
    assert counts["empty openings or continuations dropped"] == 1
    assert "rtp.jsonl, sha256" in report["what"][0]
