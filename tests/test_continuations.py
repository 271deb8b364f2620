"""RealToxicityPrompts: openings as prompts; continuations matched so that the opening's tone is no contrast."""

import json

import numpy as np
import pandas as pd
import pytest
from studies.realtoxicity import (
    SIX,
    matched_continuations,
    mixed_prompts,
    realtoxicity_prompts,
    scored_continuations,
)

from steerlib.tables import SCHEMA, check_table


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
