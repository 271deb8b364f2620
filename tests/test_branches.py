import copy
import dataclasses

import pandas as pd
import pytest
from reference import reference_answer, segment_at
from test_decoding import GREEDY, POPULATION, PROMPTS, SAMPLED, SIGNALS, VECTORS, answers
from tiny import VOCAB, tiny_model
from transformers import GPT2Config

from steerlib.decoding import Sampling, alpha_path, decode, make_arms
from steerlib.decoding.requests import make_requests
from steerlib.models import FrozenModel

BOTH = {"expert": "other", "anti": "third"}


@pytest.fixture(scope="module")
def others() -> dict[str, FrozenModel]:
    """Two models of another architecture, width and number of blocks; the same vocabulary."""
    shape = {"vocab_size": VOCAB, "n_embd": 24, "n_head": 4}
    models = [tiny_model(GPT2Config(**shape, n_layer=layers)) for layers in (2, 3)]
    return {
        branch: dataclasses.replace(model, name=name)
        for (branch, name), model in zip(BOTH.items(), models, strict=True)
    }


def trained_grid(sampling: Sampling = SAMPLED) -> pd.DataFrame:
    """Trained branches beside contexts and vectors."""
    common = {"sampling": sampling}
    expert, anti = ({b: BOTH[b]} for b in BOTH)
    return pd.concat(
        [
            make_arms("base", **common),
            make_arms("anti_expert", [0, 1.5], branches=anti, **common),
            make_arms("anti_expert", [0.5], profile="own", **common),
            make_arms("expert_anti_expert", [0.5, 1.0], branches=BOTH, **common),
            make_arms("expert_anti_expert", [1.0], profile="own", branches=expert, **common),
            make_arms("prompt_only", branches=expert, **common),
            make_arms("caa", [0.5], family=POPULATION, **common),
        ],
        ignore_index=True,
    )


@pytest.mark.parametrize("sampling", [SAMPLED, GREEDY])
def test_trained_branches_write_what_the_plain_decoder_writes(tiny, others, sampling):
    arms = trained_grid(sampling)
    table = decode(tiny, PROMPTS, arms, seeds=[3], **SIGNALS, branch_models=others)
    found = answers(table)
    requests = make_requests(tiny, PROMPTS, arms, seeds=[3], vectors=VECTORS, branch_models=others)
    for request in sorted(requests, key=lambda one: one.arm_id)[::2]:  # of three prompts: every arm is there
        expected = reference_answer(tiny, request, VECTORS, others)
        assert found[request.arm_id, request.prompt_id, request.seed] == tuple(expected), request
    assert table.nll_base.gt(0).all() and table.kl_to_base.map(float).abs().lt(1e6).all()


def test_the_base_as_both_branches_gives_the_base_answer(tiny):
    twin = dataclasses.replace(tiny, name="twin")
    models, names = {"expert": twin, "anti": twin}, {"expert": "twin", "anti": "twin"}
    base = make_arms("base", sampling=SAMPLED)
    both = make_arms("expert_anti_expert", [1.0, 2.2], branches=names, sampling=SAMPLED)
    # The twin has the very weights that the vector's hooks are on: those steer the base's own streams alone.
    steered = make_arms("caa", [0.5], family=POPULATION, sampling=SAMPLED)
    arms = pd.concat([base, both, steered])
    table = decode(tiny, PROMPTS, arms, branch_models=models, vectors=VECTORS)
    table = table[~table.arm_id.isin(steered.arm_id)]
    for _, rows in table.groupby("prompt_id"):
        assert rows.token_ids.map(tuple).nunique() == 1
        assert rows.nll_base.nunique() == 1
        assert rows.kl_to_base.abs().max() < 1e-9


def test_the_alpha_path_reads_trained_branches(tiny, others):
    settings = {"sampling": GREEDY, "branches": BOTH}
    longest = make_arms("expert_anti_expert", [2.0], **settings)
    segments = alpha_path(tiny, PROMPTS, longest, branch_models=others)
    arms = make_arms("expert_anti_expert", [0.0, 0.13, 0.77, 1.31, 1.93], **settings)
    plain = decode(tiny, PROMPTS, arms, branch_models=others).merge(arms[["arm_id", "alpha"]])
    for row in plain.itertuples():
        mine = segment_at(segments, row.alpha, prompt_id=row.prompt_id)
        assert mine.token_ids == row.token_ids, row.alpha
        assert mine.nll_base == pytest.approx(row.nll_base, abs=1e-9)


def test_a_model_that_cannot_be_a_branch_or_that_no_arm_names_is_refused(tiny, others):
    tokenizer = copy.deepcopy(others["anti"].tokenizer)
    tokenizer.add_tokens(["<new>"])
    wide, short = (
        tiny_model(GPT2Config(vocab_size=VOCAB + more, n_positions=n, n_embd=24, n_head=4, n_layer=2))
        for more, n in ((6, 512), (0, 30))
    )
    arms = make_arms("anti_expert", [1.0], branches={"anti": "third"}, sampling=SAMPLED)
    for models, named in (
        ({"anti": dataclasses.replace(others["anti"], tokenizer=tokenizer)}, "token '<new>' is 98"),
        ({"anti": wide}, "104 logits, the base 98"),
        ({"anti": dataclasses.replace(short, name="third")}, "prompt p1: .* 30 of third"),
        ({}, "'third'"),
        ({"anti": others["expert"]}, "'third'.*'other'"),
        (others, "no arm reads the expert model"),
    ):
        with pytest.raises(ValueError, match=named):
            decode(tiny, PROMPTS, arms, branch_models=models)


def test_a_branch_in_another_precision_takes_the_bases(tiny, others):
    half = dataclasses.replace(others["anti"], model=copy.deepcopy(others["anti"].model).float())
    arms = make_arms("anti_expert", [1.0], branches={"anti": "third"}, sampling=GREEDY)
    table = decode(tiny, PROMPTS, arms, branch_models={"anti": half})
    exact = decode(tiny, PROMPTS, arms, branch_models={"anti": others["anti"]})
    assert table.kl_to_base.tolist() == pytest.approx(exact.kl_to_base.tolist(), rel=1e-3)
