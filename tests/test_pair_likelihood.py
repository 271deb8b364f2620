"""Margins of given pairs: every arm against an answer read by itself, one token at a time."""

import pandas as pd
import pytest
import torch
from reference import FORMULAS

from steerlib.decoding import Sampling, make_arms
from steerlib.decoding.contexts import default_contexts
from steerlib.evaluation import likelihood_margins
from steerlib.reading import prompt_ids
from steerlib.rules import RULES
from steerlib.vectors import VectorFamily, add_to_residual

PAIRS = pd.DataFrame(
    {
        "pair_id": ["p0", "p1", "p2"],
        "user_id": ["u", "v", "u"],
        "prompt": ["Tell me", "The weather in October is", "Why?"],
        "preferred": ["a tale.", " never\nbad", "x"],
        "dispreferred": ["no", ".", " so it is"],
        "category": ["insult", "threat", "insult"],
        "shuffled_category": ["threat", "insult", "threat"],
    }
)
SHORT = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module")
def vectors(tiny):
    draw = torch.Generator().manual_seed(3)

    def one():
        return {la: torch.randn(tiny.d_model, generator=draw, dtype=torch.float64) for la in (1, 2)}

    return [
        VectorFamily("population", {"": one()}),
        VectorFamily("composed", {"u": one(), "v": one()}, "own"),
    ]


def answer_tokens(tiny, text, style):
    joined = f" {text}" if style == "continuation" and text[:1].isalnum() else text
    return tiny.tokenizer(joined, add_special_tokens=False).input_ids


def plain_logp(tiny, arm, pair, text, vectors):
    """One token at a time, every branch by itself from the beginning."""
    category = {"own": pair.category, "shuffled": pair.shuffled_category}.get(arm.profile, arm.category)
    texts = default_contexts(arm.style).get(category, {})
    names = ("base", *RULES[arm.method].branches)
    before = {
        b: list(prompt_ids(tiny, pair.prompt, style=arm.style, context=texts.get(b, ""))) for b in names
    }
    length = {b: torch.tensor([len(ids)]) for b, ids in before.items()}
    vector = next((f.of(pair.user_id) for f in vectors if f.digest == arm.vector), None)
    dose = arm.alpha if arm.method == "caa" else arm.vector_alpha
    total = 0.0
    for token in answer_tokens(tiny, text, arm.style):
        z = {}
        for b, ids in before.items():
            if vector and not (arm.method == "caa" and b == "base"):
                with add_to_residual(
                    tiny.model, vector, alpha=dose, positions=arm.positions, prompt_lengths=length[b]
                ):
                    z[b] = tiny.model(torch.tensor([ids])).logits[:, -1]
            else:
                z[b] = tiny.model(torch.tensor([ids])).logits[:, -1]
            ids.append(token)
        combined = FORMULAS[arm.method](z, arm.alpha)
        total += float(combined.log_softmax(-1)[0, token])
    return total


def all_arms(style, vectors):
    population, composed = vectors
    given = {"style": style, "sampling": SHORT}
    return pd.concat(
        [
            make_arms("base", **given),
            make_arms("prompt_only", profile="own", **given),
            make_arms("anti_expert", [0.5, 2.0], profile="own", **given),
            make_arms("anti_expert", [2.0], profile="shuffled", **given),
            make_arms("expert_anti_expert", [0.0, 1.5], profile="population", category="insult", **given),
            make_arms("caa", [0.7, -0.4], family=population, positions="generation", **given),
            make_arms("caa", [0.0, 1.1], family=composed, profile="own", **given),
            make_arms(
                "expert_anti_expert", [1.0], profile="own", family=population, vector_alpha=0.6, **given
            ),
        ],
        ignore_index=True,
    )


@pytest.mark.parametrize("style", ["chat", "continuation"])
def test_every_arm_gives_what_a_plain_loop_gives(tiny, vectors, style):
    arms = all_arms(style, vectors)
    found = likelihood_margins(tiny, PAIRS, arms, vectors=vectors)
    assert found["model"].tolist() == arms["arm_id"].tolist() * len(PAIRS)
    found = found.set_index(["model", "pair_id"])
    for arm in arms.itertuples():
        for pair in PAIRS.itertuples():
            sides = (plain_logp(tiny, arm, pair, t, vectors) for t in (pair.preferred, pair.dispreferred))
            expected = next(sides) - next(sides)
            row = found.loc[arm.arm_id, pair.pair_id]
            assert row["margin"] == pytest.approx(expected, abs=1e-8), arm.arm_id
            assert row["user_id"] == pair.user_id


def test_a_margin_a_token_divides_each_side_by_its_own_length(tiny, vectors):
    base = make_arms("base", style="chat", sampling=SHORT)
    found = likelihood_margins(tiny, PAIRS, base, per_token=True).set_index("pair_id")["margin"]
    arm = next(base.itertuples())
    for pair in PAIRS.itertuples():
        a, b = (plain_logp(tiny, arm, pair, t, vectors) / len(t) for t in (pair.preferred, pair.dispreferred))
        assert found[pair.pair_id] == pytest.approx(a - b, abs=1e-9)


@pytest.mark.parametrize("batch_tokens", [1, 7])
def test_small_batches_and_chunks_change_nothing(tiny, vectors, batch_tokens, monkeypatch):
    arms = all_arms("continuation", vectors)
    whole = likelihood_margins(tiny, PAIRS, arms, vectors=vectors)
    monkeypatch.setattr("steerlib.evaluation.likelihood.POSITIONS", 3)
    parts = likelihood_margins(tiny, PAIRS, arms, vectors=vectors, batch_tokens=batch_tokens)
    pd.testing.assert_frame_equal(whole, parts, rtol=0, atol=1e-9)


def test_a_branch_is_read_once_for_all_alphas_of_a_rule(tiny, monkeypatch):
    arms = pd.concat(
        [
            make_arms("base", style="chat", sampling=SHORT),
            make_arms(
                "anti_expert", [0.1 * i for i in range(1, 30)], profile="own", style="chat", sampling=SHORT
            ),
        ]
    )
    reads = []
    forward = tiny.model.forward
    monkeypatch.setattr(tiny.model, "forward", lambda *a, **k: reads.append(1) or forward(*a, **k))
    likelihood_margins(tiny, PAIRS.head(1), arms)
    assert len(reads) == 4  # base and anti, the prompt and then both answers


def test_steering_towards_the_preferred_side_raises_the_margin(tiny):
    """The gradient of the margin with respect to the residual is a direction that must help."""
    direction = {1: torch.zeros(tiny.d_model, dtype=torch.float64)}

    def at(vector):
        family = VectorFamily("v", {"": vector})
        arms = make_arms("caa", [0.0, 0.01], family=family, style="chat", sampling=SHORT)
        return likelihood_margins(tiny, PAIRS.head(1), arms, vectors=[family])["margin"].tolist()

    unit = torch.eye(tiny.d_model, dtype=torch.float64)
    slopes = [at({1: unit[i]}) for i in range(6)]
    for i, (nought, small) in enumerate(slopes):
        direction[1][i] = small - nought
    direction[1] /= direction[1].norm()
    nought, small = at(direction)
    assert small > nought


def test_a_cut_nucleus_an_empty_answer_and_one_too_long_are_refused(tiny):
    given = {"style": "chat", "sampling": SHORT}
    cut = make_arms("anti_expert", [1.0], profile="own", base_top_p=0.9, **given)
    with pytest.raises(ValueError, match=r"cuts the base to 0\.9 of its mass"):
        likelihood_margins(tiny, PAIRS, cut)
    base = make_arms("base", **given)
    with pytest.raises(ValueError, match="pair p1: the dispreferred answer has no tokens"):
        likelihood_margins(tiny, PAIRS.assign(dispreferred=["a", "", "b"]), base)
    with pytest.raises(ValueError, match=r"pair p0: .* and 600 new ones"):
        likelihood_margins(tiny, PAIRS.assign(preferred="x" * 600), base)
    with pytest.raises(ValueError, match="arms must be of one style"):
        likelihood_margins(tiny, PAIRS, pd.concat([base, make_arms("base", sampling=SHORT)]))
