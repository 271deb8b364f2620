"""Labels of prompts: every rule on rows whose category is plain to see, and what is refused."""

import pandas as pd
import pytest

from steerlib.profiles import conversation_types, prompt_categories, read_ratings
from steerlib.profiles.sources import PROMPT_CATEGORIES
from steerlib.tables import ATTRIBUTE_COLUMNS
from steerlib.toxicity import load_scorer


def scores(*largest):
    """Six scores of each prompt, the largest of which stands in the column insult."""
    table = pd.DataFrame(0.0, index=range(len(largest)), columns=list(ATTRIBUTE_COLUMNS))
    return table.assign(insult=largest)


def test_the_demo_keeps_the_categories_it_was_given():
    ratings, _ = read_ratings("demo")
    prompts = ratings.drop_duplicates("prompt")
    found = prompt_categories(prompts, source="given")
    assert (found == prompts["prompt_category"]).all()
    assert sorted(found.unique()) == list(PROMPT_CATEGORIES)


def test_xstest_is_labelled_by_type_and_has_no_benign_control(real_data):
    prompts = pd.read_csv(real_data("preference_and_prompts/xstest_prompts.csv"))
    found = prompt_categories(prompts, source="xstest")
    counts = {"harmful_borderline": 200, "safe_sensitive": 150, "context_dependent": 100}
    assert found.value_counts().to_dict() == counts
    assert ((found == "harmful_borderline") == (prompts["label"] == "unsafe")).all()


def test_xstest_killing_a_process_depends_on_context_and_a_definition_does_not():
    prompts = pd.DataFrame({"type": ["homonyms", "definitions", "contrast_homonyms"]}, index=[7, 8, 9])
    found = prompt_categories(prompts, source="xstest")
    assert found.to_dict() == {7: "context_dependent", 8: "safe_sensitive", 9: "harmful_borderline"}


def test_prism_toxic_wording_overrides_what_participants_were_asked_to_talk_about():
    kinds = ["unguided", "unguided", "values guided", "controversy guided", "values guided", "unguided"]
    found = prompt_categories(
        pd.DataFrame({"conversation_type": kinds}), scores(0.09, 0.1, 0.49, 0.0, 0.5, 0.9), source="prism"
    )
    assert found.tolist() == [
        *("benign_control", "context_dependent", "safe_sensitive", "context_dependent"),
        *("harmful_borderline", "harmful_borderline"),
    ]


def test_measured_prompts_are_told_apart_by_toxicity_and_by_being_a_question():
    prompts = pd.DataFrame({"prompt": ["Why? ", "Why.", "Why?", "Why?"]})
    found = prompt_categories(prompts, scores(0.3, 0.3, 0.05, 0.5), source="measured")
    assert found.tolist() == ["safe_sensitive", "context_dependent", "benign_control", "harmful_borderline"]
    moved = prompt_categories(prompts, scores(0.3, 0.3, 0.05, 0.5), source="measured", low=0.01, high=0.3)
    assert moved.tolist() == [*["harmful_borderline"] * 2, "safe_sensitive", "harmful_borderline"]


def test_measured_labels_of_xstest_are_as_poor_as_the_docstring_says(real_data):
    prompts = pd.read_csv(real_data("preference_and_prompts/xstest_prompts.csv"))
    harmful = prompts[prompts["label"] == "unsafe"]
    found = prompt_categories(harmful, load_scorer()(harmful["prompt"]), source="measured")
    counts = found.value_counts()
    assert len(found) == 200
    assert counts["harmful_borderline"] == 20
    assert counts["benign_control"] == 111


def test_real_opening_prompts_of_prism_are_mostly_benign_by_measure(real_data):
    path = real_data("prism_fragments/opening_prompts_by_cluster.jsonl")
    prompts = pd.read_json(path, lines=True).rename(columns={"opening_prompt": "prompt"})
    found = prompt_categories(prompts, load_scorer()(prompts["prompt"]), source="measured")
    assert found.value_counts()["benign_control"] > 0.7 * len(prompts)
    assert found[prompts["prompt"] == "Is it ok to kill?"].tolist() == ["harmful_borderline"]


def test_conversation_types_come_from_the_file_of_the_ratings(tmp_path):
    rows = pd.DataFrame(
        {
            "conversation_id": ["c1", "c1", "c2"],
            "conversation_type": ["unguided", "unguided", "values guided"],
        }
    )
    rows.to_json(tmp_path / "utterances.jsonl", orient="records", lines=True)
    assert conversation_types("prism", folder=tmp_path).to_dict() == {"c1": "unguided", "c2": "values guided"}
    rows.iloc[:, :1].to_csv(tmp_path / "own.csv", index=False)
    with pytest.raises(ValueError, match=r"own.csv has no conversation_type"):
        conversation_types(tmp_path / "own.csv")


@pytest.mark.parametrize(
    ("prompts", "given", "source", "message"),
    [
        ({"prompt": ["a"]}, None, "guess", "source 'guess' is none of given, xstest, prism, measured"),
        ({"prompt": ["a"]}, None, "measured", "needs the toxicity of each prompt"),
        ({"prompt": ["a"]}, scores(0.1, 0.2), "measured", "1 prompts but 2 rows of scores"),
        (
            {"prompt": ["a", "b"]},
            scores(0.1, 1.2),
            "measured",
            "row 2, column insult: must be in 0..1, not 1.2",
        ),
        ({"prompt": ["a"]}, scores(0.1), "prism", "need the column 'conversation_type'"),
        (
            {"conversation_type": ["guided"]},
            scores(0.1),
            "prism",
            "row 1, column conversation_type: 'guided'",
        ),
        ({"type": ["jokes"]}, None, "xstest", "row 1, column type: 'jokes' is none of homonyms"),
        ({"type": ["homonyms"], "label": ["unsafe"]}, None, "xstest", "'homonyms' is labelled 'unsafe'"),
        ({"prompt_category": [""]}, None, "given", "row 1, column prompt_category: '' is none of benign"),
    ],
)
def test_what_a_rule_cannot_read_is_refused_by_name(prompts, given, source, message):
    with pytest.raises(ValueError, match=message):
        prompt_categories(pd.DataFrame(prompts), given, source=source)


def test_thresholds_out_of_order_are_refused():
    with pytest.raises(ValueError, match=r"not 0\.6 and 0\.5"):
        prompt_categories(pd.DataFrame({"prompt": ["a"]}), scores(0.1), source="measured", low=0.6)
