import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from steerlib.decoding import Factor, Sampling, alpha_path, decode, make_arms
from steerlib.decoding.alpha_path import AlphaPathTrees
from steerlib.tables import append_part, read_table

PROMPTS = pd.DataFrame(
    [("p0", "The man shouted: you", "insult"), ("p1", "Once upon a time a dog", "threat")],
    columns=["prompt_id", "prompt", "category"],
)
GREEDY = Sampling(temperature=0, repetition_penalty=1.15, max_new_tokens=16)
PLAIN = Sampling(temperature=0, repetition_penalty=1.0, max_new_tokens=16)
SAMPLED = Sampling(temperature=0.7, top_p=1.0, min_p=0.05, repetition_penalty=1.15, max_new_tokens=16)
METHODS = ("anti_expert", "expert_anti_expert", "sda")
AMPLIFICATION = Factor("F(S)", {"p0": 0.4, "p1": 0.9})
FACTORS = [AMPLIFICATION]


def factor(method: str) -> Factor | None:
    return AMPLIFICATION if method == "sda" else None


def path(tiny, method: str, sampling: Sampling, **settings) -> pd.DataFrame:
    alpha_max, of = settings.pop("alpha_max", 2.2), settings.pop("factor", factor(method))
    arm = make_arms(method, [alpha_max], profile="own", sampling=sampling, factor=of)
    settings = {"seeds": [0, 1], "factors": [of] if of else [], **settings}
    return alpha_path(tiny, PROMPTS, arm, **settings)


def trees(segments: pd.DataFrame) -> list[pd.DataFrame]:
    return [tree for _, tree in segments.groupby(["prompt_id", "seed"])]


def assert_covers(tree: pd.DataFrame, alpha_max: float = 2.2) -> None:
    assert tree.alpha_low.iloc[0] == 0
    assert tree.alpha_high.iloc[-1] == alpha_max
    assert (tree.alpha_low.to_numpy()[1:] == tree.alpha_high.to_numpy()[:-1]).all()
    assert (tree.alpha_low < tree.alpha_high).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "sampling",
    [GREEDY, PLAIN, SAMPLED, dataclasses.replace(SAMPLED, min_p=0.0, penalty_scope="generated_only")],
)
def test_at_any_alpha_the_path_has_the_answer_of_plain_decoding(tiny, method, sampling):
    segments = path(tiny, method, sampling)
    alphas = np.random.default_rng(0).uniform(0, 2.2, 50)
    arms = make_arms(method, alphas, profile="own", sampling=sampling, factor=factor(method))
    answers = decode(tiny, PROMPTS, arms, seeds=[0, 1], factors=FACTORS).merge(arms[["arm_id", "alpha"]])
    assert len(answers) == 50 * len(trees(segments))
    for tree in trees(segments):
        assert_covers(tree)
        assert all(a != b for a, b in zip(tree.token_ids[1:], tree.token_ids[:-1], strict=True))
        first = tree.iloc[0]
        plain = answers[(answers.prompt_id == first.prompt_id) & (answers.seed == first.seed)]
        place = np.searchsorted(tree.alpha_low, plain.alpha, side="right") - 1
        for mine, theirs in zip(tree.iloc[place].itertuples(), plain.itertuples(), strict=True):
            assert mine.token_ids == theirs.token_ids, theirs.alpha
            assert (mine.text, mine.n_tokens, mine.stopped) == (theirs.text, theirs.n_tokens, theirs.stopped)
            assert mine.nll_base == pytest.approx(theirs.nll_base, abs=1e-9)
    assert segments.complete.all()
    assert len(segments) > 3 * len(trees(segments))


@pytest.mark.parametrize(
    ("method", "choice", "settings"),
    [
        ("sda", {"js_sigma": 0.1, "min_temperature": 0.2}, {"factor": AMPLIFICATION}),
        ("anti_expert", {}, {"base_top_p": 0.7}),
        ("expert_anti_expert", {}, {"base_top_p": 0.7}),
    ],
)
def test_the_path_is_exact_under_a_temperature_by_divergence_and_within_the_bases_nucleus(
    tiny, method, choice, settings
):
    common = {"profile": "own", "sampling": dataclasses.replace(SAMPLED, **choice), **settings}
    segments = alpha_path(tiny, PROMPTS, make_arms(method, [2.2], **common), factors=FACTORS)
    arms = make_arms(method, np.random.default_rng(1).uniform(0, 2.2, 30), **common)
    answers = decode(tiny, PROMPTS, arms, factors=FACTORS).merge(arms[["arm_id", "alpha"]])
    for tree in trees(segments):
        plain = answers[answers.prompt_id == tree.prompt_id.iloc[0]]
        place = np.searchsorted(tree.alpha_low, plain.alpha, side="right") - 1
        assert tree.token_ids.iloc[place].tolist() == plain.token_ids.tolist()
    without = path(tiny, method, SAMPLED, seeds=[0])
    assert segments.token_ids.tolist() != without.token_ids.tolist()


def test_a_prompt_without_amplification_has_one_answer_on_the_path(tiny):
    segments = path(tiny, "sda", GREEDY, factor=Factor("F(S)", {"p0": 0.0, "p1": 0.0}))
    assert segments[["alpha_low", "alpha_high"]].to_numpy().tolist() == [[0, 2.2]] * 2


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


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_just_beside_a_breakpoint_plain_decoding_gives_the_segment_on_that_side(tiny, sampling):
    segments = path(tiny, "expert_anti_expert", sampling, seeds=[0])
    for tree in trees(segments):
        wide = tree[(tree.alpha_high - tree.alpha_low) > 1e-6]
        alphas = np.unique([*(wide.alpha_low + 1e-8), *(wide.alpha_high - 1e-8)])
        arms = make_arms("expert_anti_expert", alphas, profile="own", sampling=sampling)
        prompts = PROMPTS[PROMPTS.prompt_id == tree.prompt_id.iloc[0]]
        answers = decode(tiny, prompts, arms).merge(arms[["arm_id", "alpha"]])
        place = np.searchsorted(tree.alpha_low, answers.alpha, side="right") - 1
        assert tree.token_ids.iloc[place].tolist() == answers.token_ids.tolist()


def test_the_first_segment_is_the_base_answer_and_that_of_sda_the_instructed_one(tiny):
    for method in METHODS:
        segments = path(tiny, method, SAMPLED)
        zero = make_arms("base") if method != "sda" else make_arms("instructed", profile="own")
        base = decode(tiny, PROMPTS, zero.assign(**vars(SAMPLED)), seeds=[0, 1])
        first = segments[segments.alpha_low == 0]
        assert first.token_ids.tolist() == base.token_ids.tolist()


def test_a_row_budget_leaves_the_narrowest_intervals_unfinished_and_covers_the_range(tiny, monkeypatch):
    full = path(tiny, "expert_anti_expert", GREEDY)
    monkeypatch.setattr(sys.modules["steerlib.decoding.alpha_path"], "ROW_BUDGET", 9)
    cut = path(tiny, "expert_anti_expert", GREEDY)
    assert not cut.complete.all()
    for tree, whole in zip(trees(cut), trees(full), strict=True):
        assert_covers(tree)
        assert 1 <= tree.complete.sum() <= 3
        for row in tree.itertuples():
            middle = (row.alpha_low + row.alpha_high) / 2
            answer = whole[(whole.alpha_low <= middle) & (middle < whole.alpha_high)].token_ids.iloc[0]
            assert row.token_ids == (answer if row.complete else answer[: row.n_tokens])


def test_the_answer_does_not_depend_on_what_is_decoded_together(tiny, monkeypatch):
    together = path(tiny, "anti_expert", SAMPLED)
    monkeypatch.setattr(sys.modules["steerlib.decoding.decode"], "CPU_BYTES", 0)
    apart = path(tiny, "anti_expert", SAMPLED)
    assert together.token_ids.tolist() == apart.token_ids.tolist()
    assert together.alpha_low.tolist() == pytest.approx(apart.alpha_low.tolist(), abs=1e-9)


def test_segments_are_a_table_of_the_run(tiny, tmp_path):
    segments = path(tiny, "anti_expert", GREEDY)
    append_part(tmp_path, "segments", segments, part="all")
    assert len(read_table(tmp_path, "segments")) == len(segments)


def test_what_has_no_exact_path_is_refused_with_the_reason(tiny):
    with pytest.raises(ValueError, match=r"top_p 0.9 has no exact alpha path: .* not linear in alpha"):
        path(tiny, "anti_expert", Sampling())
    with pytest.raises(ValueError, match="not of 'instructed'"):
        path(tiny, "instructed", GREEDY)
    with pytest.raises(ValueError, match="alpha must be above 0, the end of the path, not 0"):
        path(tiny, "anti_expert", GREEDY, alpha_max=0)
