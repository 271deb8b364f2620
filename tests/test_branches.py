import copy
import dataclasses

import pandas as pd
import pytest
import torch
from reference import reference_answer
from test_decoding import GREEDY, POPULATION, PROMPTS, SAMPLED, SIGNALS, VECTORS, answers
from tiny import ALPHABET, tiny_model
from transformers import GPT2Config

from steerlib.decoding import Sampling, alpha_path, decode, make_arms, run_sweep, study_arms
from steerlib.decoding.contexts import branch_names
from steerlib.decoding.requests import make_requests
from steerlib.models import FrozenModel

METHODS = ("anti_expert", "expert_anti_expert")
BOTH = {"expert": "other", "anti": "third"}


@pytest.fixture(scope="module")
def others() -> dict[str, FrozenModel]:
    """Two models of another architecture, width and number of blocks; the same vocabulary."""
    shape = {"vocab_size": len(ALPHABET) + 2, "n_embd": 24, "n_head": 4}
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
    for request in requests:
        expected = reference_answer(tiny, request, VECTORS, others)
        assert found[request.arm_id, request.prompt_id, request.seed] == tuple(expected), request
    assert table.nll_base.gt(0).all() and table.kl_to_base.map(float).abs().lt(1e6).all()


def test_a_sweep_in_small_batches_takes_trained_branches(tiny, others, tmp_path, monkeypatch):
    arms = trained_grid()
    settings = {**SIGNALS, "branch_models": others}
    together = decode(tiny, PROMPTS, arms, **settings)
    monkeypatch.setattr("steerlib.decoding.streams.CPU_BYTES", 0)
    swept = run_sweep(tiny, PROMPTS, arms, folder=tmp_path, **settings)
    assert answers(swept) == answers(together)


def test_the_base_as_both_branches_gives_the_base_answer(tiny):
    twin = dataclasses.replace(tiny, name="twin")
    names = {"expert": "twin", "anti": "twin"}
    arms = pd.concat(
        [
            make_arms("base", sampling=SAMPLED),
            make_arms("expert_anti_expert", [1.0, 2.2], branches=names, sampling=SAMPLED),
            make_arms("anti_expert", [2.2], branches={"anti": "twin"}, sampling=SAMPLED),
            make_arms("prompt_only", branches={"expert": "twin"}, sampling=SAMPLED),
        ]
    )
    # The twin has the very weights that the vector's hooks are on: those steer the base's own streams alone.
    steered = make_arms("caa", [0.5], family=POPULATION, sampling=SAMPLED)
    models = {"expert": twin, "anti": twin}
    table = decode(tiny, PROMPTS, pd.concat([arms, steered]), branch_models=models, vectors=VECTORS)
    table = table[table.arm_id.isin(arms.arm_id)]
    for _, rows in table.groupby("prompt_id"):
        assert rows.token_ids.map(tuple).nunique() == 1
        assert rows.nll_base.nunique() == 1
        assert rows.kl_to_base.abs().max() < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_the_alpha_path_reads_trained_branches(tiny, others, method):
    names = {b: BOTH[b] for b in BOTH if b == "anti" or method == "expert_anti_expert"}
    given = {branch: others[branch] for branch in names}
    settings = {"sampling": GREEDY, "branches": names}
    segments = alpha_path(tiny, PROMPTS, make_arms(method, [2.0], **settings), branch_models=given)
    alphas = [0.0, 0.13, 0.77, 1.31, 1.93]
    arms = make_arms(method, alphas, **settings)
    plain = decode(tiny, PROMPTS, arms, branch_models=given).merge(arms[["arm_id", "alpha"]])
    for row in plain.itertuples():
        tree = segments[segments.prompt_id == row.prompt_id]
        mine = tree[(tree.alpha_low <= row.alpha) & (row.alpha < tree.alpha_high)].iloc[0]
        assert mine.token_ids == row.token_ids, row.alpha
        assert mine.nll_base == pytest.approx(row.nll_base, abs=1e-9)


def test_another_vocabulary_is_refused_naming_the_first_token_that_differs(tiny, others):
    model = others["anti"]
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.add_tokens(["<new>"])
    added = dataclasses.replace(model, tokenizer=tokenizer)
    arms = make_arms("anti_expert", [1.0], branches={"anti": "third"})
    with pytest.raises(ValueError, match=r"token '<new>' is 98 there and missing in the base"):
        decode(tiny, PROMPTS, arms, branch_models={"anti": added})


def test_another_number_of_logits_is_refused_with_the_way_out(tiny):
    wide = tiny_model(GPT2Config(vocab_size=len(ALPHABET) + 8, n_embd=24, n_layer=2, n_head=4))
    arms = make_arms("anti_expert", [1.0], branches={"anti": wide.name})
    with pytest.raises(ValueError, match=r"has 104 logits, the base 98: .* resize_token_embeddings"):
        decode(tiny, PROMPTS, arms, branch_models={"anti": wide})


def test_models_and_arms_must_name_each_other(tiny, others):
    arms = make_arms("anti_expert", [1.0], branches={"anti": "third"})
    with pytest.raises(ValueError, match="reads the anti model 'third'; none is given in branch_models"):
        decode(tiny, PROMPTS, arms)
    with pytest.raises(ValueError, match="reads the anti model 'third'; 'other' is given"):
        decode(tiny, PROMPTS, arms, branch_models={"anti": others["expert"]})
    with pytest.raises(ValueError, match="no arm reads the expert model 'other'"):
        decode(tiny, PROMPTS, arms, branch_models=others)


def test_a_prompt_too_long_for_a_trained_branch_is_refused_naming_its_model(tiny):
    shape = {"vocab_size": len(ALPHABET) + 2, "n_embd": 24, "n_head": 4, "n_layer": 2}
    short = tiny_model(GPT2Config(**shape, n_positions=30))
    arms = make_arms("anti_expert", [1.0], branches={"anti": short.name}, sampling=SAMPLED)
    with pytest.raises(ValueError, match=r"prompt p0: .* more than the 30 of tiny gpt2"):
        decode(tiny, PROMPTS, arms, branch_models={"anti": short})


def test_names_of_branches_survive_the_column_even_with_commas():
    names = {"expert": "SmolLM2 (Q4_1, dequantised)", "anti": "a=b, c"}
    arm = make_arms("expert_anti_expert", [1.0], branches=names)
    assert branch_names(arm.branches.item()) == names
    assert branch_names("") == {}


def test_a_study_gives_each_method_its_trained_branches_and_no_placebo_without_a_context():
    arms = study_arms(
        METHODS,
        ["prompt_only", "shuffled"],
        alphas=[1.0],
        vectors=[],
        model="",
        contexts={},
        positions="all",
        style="continuation",
        sampling=SAMPLED,
        branches={"anti": "third"},
    )
    found = arms[["method", "profile", "branches"]].itertuples(index=False, name=None)
    assert list(found) == [
        ("base", "none", ""),
        ("anti_expert", "none", '{"anti": "third"}'),
        ("expert_anti_expert", "own", '{"anti": "third"}'),
        ("expert_anti_expert", "shuffled", '{"anti": "third"}'),
        ("prompt_only", "own", ""),
    ]
    assert arms.arm_id.is_unique


def test_a_branch_in_another_precision_takes_the_bases(tiny, others):
    half = dataclasses.replace(others["anti"], model=copy.deepcopy(others["anti"].model).float())
    arms = make_arms("anti_expert", [1.0], branches={"anti": "third"}, sampling=GREEDY)
    table = decode(tiny, PROMPTS, arms, branch_models={"anti": half})
    exact = decode(tiny, PROMPTS, arms, branch_models={"anti": others["anti"]})
    assert torch.tensor(table.kl_to_base.tolist()).allclose(
        torch.tensor(exact.kl_to_base.tolist()), rtol=1e-3
    )
