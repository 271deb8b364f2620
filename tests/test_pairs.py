"""Contrast pairs from ratings, tables and transcripts, and the residuals of their answers."""

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from steerlib.reading import answer_ids, prompt_ids, text_ids
from steerlib.residual import record_residual
from steerlib.tables import check_table
from steerlib.vectors import continuation_residuals, pair_residuals, pairs_from_ratings, read_pairs

SPLITS = pd.DataFrame({"conversation_id": ["c1", "c2", "c3"], "user_id": "u", "split": "train"})
SPLITS = pd.concat([SPLITS, SPLITS[:1].assign(conversation_id="c4", split="dev")])


def ratings_with_margins(*margins):
    rows = []
    for number, margin in enumerate(margins, start=1):
        for place, rating in enumerate((50, 50 + margin)):
            rows.append((f"c{number}", f"c{number}-{place}", f"answer {rating}", rating))
    table = pd.DataFrame(rows, columns=["conversation_id", "utterance_id", "response", "rating"])
    return table.assign(user_id="u", turn=0, prompt="p")


def test_ties_make_no_pair():
    ratings = ratings_with_margins(6, 5, 0, 8)
    assert pairs_from_ratings(ratings, SPLITS).conversation_id.tolist() == ["c1", "c4"]
    pairs = pairs_from_ratings(ratings, SPLITS, tie=0).sort_values("pair_id", ignore_index=True)
    assert pairs.conversation_id.tolist() == ["c1", "c2", "c4"]
    assert pairs.preferred.tolist() == ["answer 56", "answer 55", "answer 58"]
    assert pairs.dispreferred.tolist() == ["answer 50"] * 3
    check_table("pairs", pairs)


def own_pairs(n=8):
    texts = [f"question {i}" for i in range(n)]
    return pd.DataFrame({"prompt": texts, "preferred": "yes", "dispreferred": "no"})


def test_a_file_of_ones_own_keeps_its_users_and_conversations(tmp_path):
    rows = own_pairs().assign(user_id=["1", "1.0", "2 ", "2", *"3344"], conversation_id=list("abcdefgh"))
    rows.to_csv(tmp_path / "pairs.csv", index=False)
    pairs, dropped = read_pairs(tmp_path / "pairs.csv")
    assert pairs.prompt.tolist() == rows.prompt.tolist()
    assert pairs.user_id.tolist() == list("11223344")
    assert pairs.conversation_id.tolist() == list("abcdefgh")
    assert pairs.split.value_counts().to_dict() == {"train": 4, "test": 4}
    assert dropped.empty


def test_the_split_is_of_prompts_by_the_seed_whatever_the_order_of_rows(tmp_path):
    rows, splits = pd.concat([own_pairs(40).assign(preferred=f"yes {i}") for i in range(3)]), []
    for ordered, seed in ((rows, 0), (rows.iloc[::-1], 0), (rows, 1)):
        ordered.to_csv(tmp_path / "p.csv", index=False)
        pairs, _ = read_pairs(tmp_path / "p.csv", seed=seed)
        splits.append({name: set(rows.prompt) for name, rows in pairs.groupby("split")})
        assert not splits[-1]["train"] & splits[-1]["test"]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize(
    ("column", "value"),
    [("prompt", ""), ("preferred", 7), ("dispreferred", "yes"), ("user_id", " ")],
)
def test_a_bad_row_is_refused_by_row_and_column_or_dropped_and_listed(tmp_path, column, value):
    rows = own_pairs().assign(user_id="u").astype(object)
    rows.at[2, column] = value
    rows.to_json(tmp_path / "p.jsonl", orient="records", lines=True)
    with pytest.raises(ValueError, match=f"row 3, column {column}"):
        read_pairs(tmp_path / "p.jsonl")
    pairs, dropped = read_pairs(tmp_path / "p.jsonl", bad_rows="drop")
    assert len(pairs) == 7
    assert dropped[["row", "column"]].to_numpy().tolist() == [[3, column]]


def test_a_file_of_neither_kind_or_without_two_conversations_is_refused(tmp_path):
    own_pairs().drop(columns="prompt").to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(ValueError, match="prompt"):
        read_pairs(tmp_path / "p.csv")
    own_pairs(1).to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(ValueError, match="1 conversations"):
        read_pairs(tmp_path / "p.csv")


def transcripts(path, *rows):
    pd.DataFrame(rows, columns=["chosen", "rejected"]).to_json(path, orient="records", lines=True)
    return path


ONE = "\n\nHuman: one\n\nAssistant: "
TWO = f"{ONE}fine\n\nHuman: more\n\nAssistant: "
OTHER = "\n\nHuman: other\n\nAssistant: "


def test_the_shared_history_of_two_transcripts_is_the_prompt(tmp_path):
    rows = [(f"{ONE}good", f"{ONE}bad"), (f"{TWO}good", f"{TWO}bad"), (f"{OTHER}good", f"{OTHER}bad")]
    pairs, _ = read_pairs(transcripts(tmp_path / "hh.jsonl.gz", *rows))
    assert pairs.prompt.tolist() == ["one", "Human: one\n\nAssistant: fine\n\nHuman: more", "other"]
    assert set(pairs.preferred) == {"good"}
    assert set(pairs.dispreferred) == {"bad"}
    first, second, other = pairs.conversation_id
    assert first == second != other
    assert pairs.split[0] == pairs.split[1] != pairs.split[2]


@pytest.mark.parametrize(
    ("chosen", "rejected", "column"),
    [
        ("hello", f"{ONE}bad", "chosen"),
        (f"{ONE}good", f"{ONE} ", "rejected"),
        (f"{ONE}good\n\nHuman: and?", f"{ONE}bad", "chosen"),
        (f"{ONE}good", f"{OTHER}bad", "rejected"),
        ("\n\nHuman:\n\nAssistant: a", "\n\nHuman:\n\nAssistant: b", "chosen"),
    ],
)
def test_a_transcript_that_is_no_pair_is_refused_by_row_and_column(tmp_path, chosen, rejected, column):
    good = [(f"{ONE}good", f"{ONE}bad"), (f"{OTHER}good", f"{OTHER}bad")]
    path = transcripts(tmp_path / "hh.jsonl.gz", *good, (chosen, rejected))
    with pytest.raises(ValueError, match=f"row 3, column {column}"):
        read_pairs(path)
    assert len(read_pairs(path, bad_rows="drop")[0]) == 2


def test_hh_rlhf_is_read_with_its_bad_rows_listed_and_its_conversations_apart(real_data):
    path = real_data("preference_and_prompts/hh_rlhf_harmless_base_test.jsonl.gz")
    pairs, dropped = read_pairs(path, bad_rows="drop")
    assert (len(pairs), len(dropped)) == (2303, 9)
    assert not set(pairs.prompt[pairs.split == "train"]) & set(pairs.prompt[pairs.split == "test"])


@pytest.mark.parametrize("style", ["chat", "continuation"])
def test_residuals_are_read_after_each_texts_own_prompt(tiny, style):
    prompts, continuations = ["ab", "a longer opening"], [" cd efg", " h"]
    pairs = pd.DataFrame({"prompt": prompts, "preferred": continuations, "dispreferred": "no"}, index=[4, 9])
    preferred, dispreferred = pair_residuals(tiny, pairs, layers=[1, 2], style=style)
    for row, (prompt, text) in enumerate(zip(prompts, continuations, strict=True)):
        opening = prompt_ids(tiny, prompt, style=style)
        ids = [opening + answer_ids(tiny, one, style=style) for one in (text, "no")]
        alone = record_residual(tiny, ids, layers=[1, 2], prompt_lengths=[len(opening)] * 2)
        for layer in (1, 2):
            assert_close(preferred[layer][row], alone[layer][0])
            assert_close(dispreferred[layer][row], alone[layer][1])
    with pytest.raises(ValueError, match=r"pool 'prompt_last' .* name answer_mean or last"):
        pair_residuals(tiny, pairs, layers=[1], style=style, pool="prompt_last")


def test_a_text_without_a_prompt_is_read_from_its_second_token_on(tiny):
    ids = text_ids(tiny, "abcd")
    hidden = tiny.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
    found = continuation_residuals(tiny, [""], ["abcd"], layers=[1])[1][0]
    assert_close(found, hidden[1:].mean(0))
    with pytest.raises(ValueError, match="sequence 1"):
        continuation_residuals(tiny, ["", ""], ["abcd", "a"], layers=[1])
    with pytest.raises(ValueError, match="prompt"):
        continuation_residuals(tiny, [""], ["abcd"], layers=[1], style="chat")
