import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from reference import segment_at

from steerlib.decoding import Factor, Sampling, alpha_path, decode, make_arms
from steerlib.decoding.alpha_path import AlphaPathTrees

PROMPTS = pd.DataFrame(
    [("p0", "The man shouted: you", "insult"), ("p1", "Once upon a time a dog", "threat")],
    columns=["prompt_id", "prompt", "category"],
)
GREEDY = Sampling(temperature=0, repetition_penalty=1.15, max_new_tokens=16)
PLAIN = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=16)
SAMPLED = Sampling(temperature=0.7, top_p=1.0, min_p=0.05, repetition_penalty=1.15, max_new_tokens=16)
AMPLIFICATION = Factor("F(S)", {"p0": 0.4, "p1": 0.9})


def path(tiny, method: str, sampling: Sampling, **settings) -> pd.DataFrame:
    alpha_max = settings.pop("alpha_max", 2.2)
    arm = make_arms(method, [alpha_max], profile="own", sampling=sampling)
    return alpha_path(tiny, PROMPTS, arm, **{"seeds": [0, 1], **settings})


def trees(segments: pd.DataFrame) -> list[pd.DataFrame]:
    return [tree for _, tree in segments.groupby(["prompt_id", "seed"])]


def assert_covers(tree: pd.DataFrame, alpha_max: float = 2.2) -> None:
    assert tree.alpha_low.iloc[0] == 0
    assert tree.alpha_high.iloc[-1] == alpha_max
    assert (tree.alpha_low.to_numpy()[1:] == tree.alpha_high.to_numpy()[:-1]).all()
    assert (tree.alpha_low < tree.alpha_high).all()


@pytest.mark.parametrize(
    ("method", "sampling"),
    [
        ("expert_anti_expert", PLAIN),
        ("sda", SAMPLED),
        ("expert_anti_expert", dataclasses.replace(SAMPLED, min_p=0.0, penalty_scope="generated_only")),
        ("sda", dataclasses.replace(SAMPLED, js_sigma=0.1, min_temperature=0.2)),
        ("anti_expert", SAMPLED),
    ],
)
def test_at_any_alpha_and_beside_breakpoints_the_path_has_the_answer_of_plain_decoding(
    tiny, method, sampling
):
    common = {"profile": "own", "sampling": sampling, "factor": AMPLIFICATION if method == "sda" else None}
    given = {"seeds": [0, 1], "factors": [AMPLIFICATION]}
    segments = alpha_path(tiny, PROMPTS, make_arms(method, [2.2], **common), **given)
    wide = trees(segments)[0].query("alpha_high - alpha_low > 1e-6")
    anywhere = np.random.default_rng(0).uniform(0, 2.2, 25)
    alphas = np.concatenate([anywhere, wide.alpha_low + 1e-8, wide.alpha_high - 1e-8])
    arms = make_arms(method, alphas, **common)
    answers = decode(tiny, PROMPTS, arms, **given).merge(arms[["arm_id", "alpha"]])
    for tree in trees(segments):
        assert_covers(tree)
        assert all(a != b for a, b in zip(tree.token_ids[1:], tree.token_ids[:-1], strict=True))
    for row in answers.itertuples():
        segment = segment_at(segments, row.alpha, prompt_id=row.prompt_id, seed=row.seed)
        assert segment.token_ids == row.token_ids, row.alpha
        assert (segment.text, segment.n_tokens, segment.stopped) == (row.text, row.n_tokens, row.stopped)
        assert segment.nll_base == pytest.approx(row.nll_base, abs=1e-9)
    assert segments.complete.all()
    assert len(segments) > 3 * len(trees(segments))


def test_a_batch_that_does_not_fit_the_memory_is_halved(tiny, monkeypatch):
    expected = path(tiny, "anti_expert", GREEDY)
    grow, sizes = AlphaPathTrees.grow, []

    def scarce(trees: AlphaPathTrees) -> None:
        sizes.append(len(trees.requests))
        if len(trees.requests) > 1:
            raise torch.OutOfMemoryError
        return grow(trees)

    monkeypatch.setattr(AlphaPathTrees, "grow", scarce)
    assert path(tiny, "anti_expert", GREEDY).token_ids.tolist() == expected.token_ids.tolist()
    assert sizes == [2, 1, 1]


def test_a_row_budget_leaves_the_narrowest_intervals_unfinished_and_covers_the_range(tiny, monkeypatch):
    full = path(tiny, "expert_anti_expert", GREEDY)
    monkeypatch.setattr(sys.modules["steerlib.decoding.alpha_path"], "ROW_BUDGET", 9)
    cut = path(tiny, "expert_anti_expert", GREEDY)
    assert not cut.complete.all()
    for tree, whole in zip(trees(cut), trees(full), strict=True):
        assert_covers(tree)
        assert 1 <= tree.complete.sum() <= 3
        for row in tree.itertuples():
            answer = segment_at(whole, (row.alpha_low + row.alpha_high) / 2).token_ids
            assert row.token_ids == (answer if row.complete else answer[: row.n_tokens])


def test_what_has_no_exact_path_is_refused_with_the_reason(tiny):
    with pytest.raises(ValueError, match=r"top_p 0\.9"):
        path(tiny, "anti_expert", Sampling())
    with pytest.raises(ValueError, match="'instructed'"):
        path(tiny, "instructed", GREEDY)
    with pytest.raises(ValueError, match="alpha"):
        path(tiny, "anti_expert", GREEDY, alpha_max=0)
