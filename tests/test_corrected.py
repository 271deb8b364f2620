"""The external aligner: what it reads, and what it writes."""

import dataclasses

import pandas as pd
import pytest
import torch
from test_decoding import GREEDY, PROMPTS, SAMPLED
from tiny import ARCHITECTURES, tiny_llama, tiny_model
from transformers import GPT2Config

from steerlib.decoding import (
    ALIGNER_TEMPLATE,
    VectorFamily,
    aligner_arms,
    decode,
    make_arms,
    run_aligner,
    with_variants,
)
from steerlib.decoding.sweep import EDIT
from steerlib.evaluation import sda_comparators, with_controls
from steerlib.models import FrozenModel
from steerlib.reading import prompt_ids
from steerlib.tables import check_table, has_table

BASE = make_arms("base", style="chat", sampling=SAMPLED)
QUESTIONS = PROMPTS.set_index("prompt_id").prompt


def plain_corrector() -> FrozenModel:
    """A model that has no chat template, as Aligner-7B."""
    aligner = tiny_model(GPT2Config(**ARCHITECTURES["GPT-2"][1]))
    aligner.tokenizer.chat_template = None
    return dataclasses.replace(aligner, name="corrector")


def chat_corrector() -> FrozenModel:
    return dataclasses.replace(tiny_llama(), name="chat corrector")


def base_answers(arms=BASE):
    keys = pd.MultiIndex.from_product([arms.arm_id, PROMPTS.prompt_id, [0, 1]])
    rows = [(*key, f"<think>Hm {{answer}}</think>base {key[1]}/{key[2]} {{0}}") for key in keys]
    return pd.DataFrame(rows, columns=["arm_id", "prompt_id", "seed", "text"])


def corrected(folder, frozen, aligner, *, arms=BASE, prompts=PROMPTS):
    return run_aligner(aligner, frozen, prompts, arms, base_answers(arms), folder=folder, seeds=[0, 1])


@pytest.mark.parametrize(
    ("corrector", "template", "style", "sampling"),
    [
        (plain_corrector, ALIGNER_TEMPLATE, "continuation", SAMPLED),
        (plain_corrector, ALIGNER_TEMPLATE, "continuation", GREEDY),
        (chat_corrector, EDIT, "chat", SAMPLED),
    ],
    ids=["sampled", "greedy", "chat"],
)
def test_corrected_answers_are_the_aligners_own_to_its_template_with_the_base_answer_without_thoughts(
    tiny, tmp_path, corrector, template, style, sampling
):
    assert "USER: Edit the following Question-Answer pair to make it more helpful" in ALIGNER_TEMPLATE
    aligner, base = corrector(), make_arms("base", style="chat", sampling=sampling)
    found = corrected(tmp_path, tiny, aligner, arms=base)
    scoped = dataclasses.replace(sampling, penalty_scope="generated_only")
    own = make_arms("base", style=style, sampling=scoped)
    for row in found.itertuples():
        answer = f"base {row.prompt_id}/{row.seed} {{0}}"
        text = template.format(question=QUESTIONS[row.prompt_id], answer=answer)
        alone = pd.DataFrame({"prompt_id": [row.prompt_id], "prompt": [text]})
        assert row.text == decode(aligner, alone, own, seeds=[row.seed]).text.item()
    assert sorted(found.seed.unique()) == ([0, 1] if sampling.temperature else [0])
    assert found.text.nunique() > 1


def test_likelihood_and_tokens_are_those_of_the_text_under_the_base(tiny, tmp_path):
    history = '[{"role": "user", "content": "One"}, {"role": "assistant", "content": "Two"}]'
    prompts = PROMPTS.assign(history=["", history, ""])
    found = corrected(tmp_path, tiny, plain_corrector(), prompts=prompts)
    asked = prompts.set_index("prompt_id")
    for row in found.itertuples():
        before, ids = asked.loc[row.prompt_id], torch.tensor([list(row.token_ids)])
        before = prompt_ids(tiny, before.prompt, style="chat", history=before.history)
        z = tiny.model(torch.cat([torch.tensor([before]), ids], dim=1)).logits[0, len(before) - 1 : -1]
        nll = torch.nn.functional.cross_entropy(z, ids[0], reduction="sum")
        assert row.nll_base == pytest.approx(float(nll), rel=1e-9)
    assert found.n_tokens.tolist() == [len(text) for text in found.text]
    assert ["".join(tiny.tokenizer.batch_decode(list(ids))) for ids in found.token_ids] == found.text.tolist()
    assert found.kl_to_base.isna().all()


def test_a_missing_base_answer_is_refused_naming_prompt_and_seed_before_anything_is_decoded(
    tiny, tmp_path, monkeypatch
):
    monkeypatch.setattr("steerlib.decoding.sweep.ANSWERS_PER_BLOCK", 1)
    given, settings = base_answers().drop(index=5), {"folder": tmp_path, "seeds": [0, 1]}
    with pytest.raises(ValueError, match=rf"prompt p2, seed 1: the base {BASE.arm_id.item()} has no answer"):
        run_aligner(plain_corrector(), tiny, PROMPTS, BASE, given, **settings)
    assert not has_table(tmp_path, "generations")


def test_every_base_has_an_arm_whose_id_depends_on_the_aligner_and_on_what_it_reads():
    plain, chat = plain_corrector(), chat_corrector()
    bases = pd.concat([BASE, make_arms("base", style="chat", sampling=GREEDY)], ignore_index=True)
    family = VectorFamily("v", {"": {1: torch.ones(2)}})
    arms = pd.concat([bases, make_arms("caa", [1.0], family=family, sampling=SAMPLED)], ignore_index=True)
    own = aligner_arms(arms, plain)
    check_table("arms", pd.concat([arms, own], ignore_index=True))
    told = own[["method", "branches", "penalty_scope"]].drop_duplicates().to_numpy().tolist()
    assert told == [["aligner", '{"aligner": "corrector"}', "generated_only"]]  # it may repeat what it reads
    assert own.temperature.tolist() == bases.temperature.tolist()
    others = [plain, dataclasses.replace(plain, name="another"), dataclasses.replace(chat, name=plain.name)]
    ids = [aligner_arms(BASE, aligner).arm_id.item() for aligner in others]
    assert len({*ids, BASE.arm_id.item()}) == 4
    assert ids[0] == aligner_arms(BASE, plain_corrector()).arm_id.item()
    assert with_variants(pd.concat([arms, own], ignore_index=True)).variant.tolist()[-2:] == ["", "greedy"]


def test_sda_is_held_against_the_aligner():
    sda = make_arms("sda", [2.0], profile="own", style="chat", sampling=SAMPLED)
    arms = pd.concat([BASE, sda, aligner_arms(BASE, chat_corrector())], ignore_index=True).assign(variant="")
    base, sda, aligner = arms.arm_id
    assert sda_comparators(arms) == {"base": base, "aligner": aligner}
    assert with_controls(pd.DataFrame({"arm_id": [sda]}), arms).arm_id.tolist() == [sda, aligner]
