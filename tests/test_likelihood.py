"""Given texts: trees of texts against texts read alone, margins of pairs, divergence."""

import math

import pandas as pd
import pytest
import torch
from reference import FORMULAS, branch_logits, branch_of_arm, reference_divergence
from tiny import architecture

from steerlib.decoding import Sampling, VectorFamily, make_arms
from steerlib.decoding.requests import Stream, branch_ids, default_contexts
from steerlib.evaluation import likelihood_margins, token_divergence
from steerlib.evaluation.likelihood import forced_logits
from steerlib.reading import answer_ids
from steerlib.rules import RULES

SOME = ["Llama 3", "Qwen 3", "Gemma 3", "Mistral", "GPT-2", "GPT-NeoX (Pythia)", "Falcon"]
SHORT = Sampling(max_new_tokens=4)


def families(tiny):
    draw = torch.Generator().manual_seed(3)

    def one(*layers):
        return {la: torch.randn(tiny.d_model, generator=draw, dtype=torch.float64) for la in layers}

    own = VectorFamily("composed", {"u": one(2), "v": one(1, 2)}, "own")
    return [VectorFamily("population", {"": one(1, 2)}), own]


@pytest.mark.parametrize("name", SOME)
def test_texts_in_a_tree_have_the_logits_of_each_alone(name, monkeypatch):
    frozen = architecture(name)
    vectors = families(frozen)
    population, own = (family.digest for family in vectors)
    steering = [
        (),
        ((population, ""), 0.5, "all"),
        ((population, ""), -1.0, "generation"),
        ((own, "u"), 2.0, "first_k:2"),
        ((own, "v"), 1.0, "prompt"),
    ]
    texts = [
        (Stream(context, *one), answer)
        for context in ((5, 6, 7, 8), (5, 6, 7, 8, 9), (5, 6, 7), (10, 11, 12))
        for answer in ((8, 9, 10), (8, 11), tuple(range(8, 30)))
        for one in (steering if context[0] == 5 else steering[:2])
    ]
    for most in (256, 40):
        monkeypatch.setattr("steerlib.evaluation.likelihood.TREE", most)
        found = dict(forced_logits({"": frozen}, texts, vectors))
        assert found.keys() == set(texts)
        for (stream, answer), z in found.items():
            alone = branch_logits(frozen, stream, answer[:-1], vectors)
            torch.testing.assert_close(z, alone, rtol=0, atol=1e-10)


def test_what_texts_have_in_common_is_read_once_and_blocks_below_a_vector_too(tiny):
    vectors, read = families(tiny), []
    family = vectors[0].digest  # steers block 1 and later
    texts = [(Stream((5, 6, 7, 8)), answer) for answer in ((20, 21, 22), (20, 21, 23), (30, 31, 32))]
    texts += [(Stream(one.ids, (family, ""), a), answer) for a in (0.5, 1.0) for one, answer in texts]

    def record(_module, _args, given):
        read.append(tuple(given["hidden_states"].shape[:2]))

    hooked = [block.self_attn for block in tiny.blocks]
    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in hooked]
    list(forced_logits({"": tiny}, texts, vectors))
    for handle in handles:
        handle.remove()
    assert read == [(1, 8), (1, 8), (3, 8), (3, 8)]


ROWS = [
    ("p0", "u", "Tell me", "a tale.", "no", "insult", "threat"),
    ("p1", "v", "The weather in October is", " never\nbad", ".", "threat", "insult"),
    ("p2", "u", "Tell me", "x", " so it is", "insult", "threat"),
]
COLUMNS = ["pair_id", "user_id", "prompt", "preferred", "dispreferred", "category", "shuffled_category"]
PAIRS = pd.DataFrame(ROWS, columns=COLUMNS, index=[7, 3, 5])


def plain_logp(tiny, arm, pair, text, vectors):
    """Log-probability per token, every branch of every text by itself."""
    category = {"own": pair.category, "shuffled": pair.shuffled_category}.get(arm.profile, arm.category)
    texts = default_contexts(arm.style).get(category, {})
    joined = f" {text}" if arm.style == "continuation" and text[:1].isalnum() else text
    tokens = tiny.tokenizer(joined, add_special_tokens=False).input_ids
    branches = ("base", *RULES[arm.method].branches)
    read = {b: branch_of_arm(tiny, arm, b, pair.prompt, texts.get(b, ""), pair.user_id) for b in branches}
    z = {b: branch_logits(tiny, stream, tokens[:-1], vectors) for b, stream in read.items()}
    return float(FORMULAS[arm.method](z, arm.alpha).log_softmax(-1)[range(len(tokens)), tokens].mean())


def all_arms(style, vectors):
    population, composed = vectors
    given = {"style": style, "sampling": SHORT}
    made = [
        make_arms("base", **given),
        make_arms("prompt_only", profile="own", **given),
        make_arms("anti_expert", [0.5, 2.0], profile="own", **given),
        make_arms("anti_expert", [2.0], profile="shuffled", **given),
        make_arms("expert_anti_expert", [0.0, 1.5], profile="population", category="insult", **given),
        make_arms("caa", [0.7, -0.4], family=population, positions="generation", **given),
        make_arms("caa", [0.0, 1.1], family=composed, profile="own", **given),
        make_arms("expert_anti_expert", [1.0], profile="own", family=population, vector_alpha=0.6, **given),
    ]
    return pd.concat(made, ignore_index=True)


@pytest.mark.parametrize(("style", "kept"), [("chat", 2048), ("continuation", 1)])
def test_the_margin_of_every_arm_is_that_of_a_plain_loop(tiny, style, kept, monkeypatch):
    monkeypatch.setattr("steerlib.evaluation.likelihood.PASS", kept)
    vectors = families(tiny)
    arms = all_arms(style, vectors)
    found = likelihood_margins(tiny, PAIRS, arms, vectors=vectors)
    assert found["model"].tolist() == arms["arm_id"].tolist() * len(PAIRS)
    margins = found.set_index(["model", "pair_id"])
    for arm in arms.itertuples():
        for pair in PAIRS.itertuples():
            likes = plain_logp(tiny, arm, pair, pair.preferred, vectors)
            dislikes = plain_logp(tiny, arm, pair, pair.dispreferred, vectors)
            row = margins.loc[arm.arm_id, pair.pair_id]
            assert row["margin"] == pytest.approx(likes - dislikes, abs=1e-8), arm.arm_id
            assert row["user_id"] == pair.user_id


HONEST = {"honesty": {"instructed": "Be honest."}}
ASKED = pd.DataFrame({"prompt_id": ["p", "q", "r"], "prompt": ["Is it?", "Was it so?", "?!"]})
ASKED["category"] = "honesty"
ANSWERS = pd.Series({"q": "No.", "p": "Yes, it is.", "r": ""})


def test_each_token_has_the_divergence_of_both_branches_read_alone(tiny):
    found = token_divergence(tiny, ASKED, ANSWERS, style="chat", contexts=HONEST)
    assert found.js.between(0, math.log(2)).all()
    assert set(found.prompt_id) == {"p", "q"}
    for prompt_id, rows in found.groupby("prompt_id"):
        prompt = ASKED.set_index("prompt_id").prompt[prompt_id]
        ids = answer_ids(tiny, ANSWERS[prompt_id], style="chat")
        read = {"category": "honesty", "style": "chat", "contexts": HONEST}
        both = [branch_ids(tiny, prompt, branch, **read) for branch in ("base", "instructed")]
        z = [branch_logits(tiny, Stream(context), ids[:-1]) for context in both]
        js = [reference_divergence(*one) for one in zip(*z, strict=True)]
        assert rows.js.tolist() == pytest.approx(js, abs=1e-10)


def test_what_is_too_long_empty_or_in_two_styles_is_refused(tiny):
    base = make_arms("base", style="chat", sampling=SHORT)
    for arms, pairs, named in (
        (base, PAIRS.assign(dispreferred=["a", "", "b"]), "pair p1"),
        (base, PAIRS.assign(preferred="x" * 600), "pair p0"),
        (pd.concat([base, make_arms("base", sampling=SHORT)]), PAIRS, "chat, continuation"),
    ):
        with pytest.raises(ValueError, match=named):
            likelihood_margins(tiny, pairs, arms)
