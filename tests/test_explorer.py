"""The alpha explorer: its answers, and its widgets driven by setting their values."""

import asyncio
import math
from collections.abc import Callable

import pandas as pd
import pytest
import torch

from steerlib.decoding import Sampling, VectorFamily, alpha_path, decode, make_arms
from steerlib.explorer import (
    AlphaExplorer,
    Answers,
    Explorer,
    answers_html,
    answers_table,
    curves_figure,
)
from steerlib.explorer.page import curve, summary
from steerlib.models import FrozenModel
from steerlib.toxicity import ATTRIBUTES

TURNS = '[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]'
PROMPTS = pd.DataFrame(
    {
        "prompt_id": ["p1", "p2"],
        "prompt": ["Well, you are", "The weather in"],
        "history": ["", TURNS],
        "category": ["insult", "threat"],
    }
)


SAMPLING = Sampling(top_p=1.0, min_p=0.02, max_new_tokens=8)


class LetterScorer:
    """A scorer by hand: each attribute is the share of one letter among the first ten characters."""

    id = "letters"

    def __call__(self, texts: list[str]) -> pd.DataFrame:
        shares = [[text[:10].lower().count(letter) / 10 for letter in "etaoin"] for text in texts]
        return pd.DataFrame(shares, columns=list(ATTRIBUTES))


@pytest.fixture
def explorer(tiny: FrozenModel) -> Explorer:
    vector = {1: torch.ones(tiny.d_model), 2: torch.ones(tiny.d_model)}
    return Explorer(
        tiny,
        LetterScorer(),
        sampling=SAMPLING,
        vectors=[VectorFamily("polite", {"": vector})],
        alpha_max=2.0,
        residual_alphas=(0.0, 1.0, 4.0),
    )


@pytest.fixture
def widget(explorer: Explorer) -> AlphaExplorer:
    shown = AlphaExplorer(explorer, PROMPTS)
    shown.decode()
    return shown


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call of the engine that the explorer makes."""
    made: list[str] = []
    for engine in (alpha_path, decode):

        def spy(*args: object, _engine: Callable = engine, **rest: object) -> pd.DataFrame:
            made.append(_engine.__name__)
            return _engine(*args, **rest)

        monkeypatch.setattr(f"steerlib.explorer.session.{engine.__name__}", spy)
    return made


ASK = {"prompt_id": "p1", "category": "insult", "method": "expert_anti_expert"}
LOGIT = ("anti_expert", "expert_anti_expert", "sda")


def middles(answers: Answers) -> list[float]:
    return ((answers.steered["alpha_low"] + answers.steered["alpha_high"]) / 2).tolist()


def test_a_path_is_asked_for_once_and_the_base_once_for_all_methods(explorer, calls):
    first = explorer.answers("Well, you are", **ASK)
    assert calls == ["alpha_path", "decode"] and first.exact
    assert explorer.answers("Well, you are", **ASK) is first
    explorer.answers("Well, you are", **(ASK | {"category": "threat", "method": "anti_expert"}))
    assert calls == ["alpha_path", "decode", "alpha_path"]


@pytest.mark.parametrize("method", LOGIT)
def test_the_segments_cover_the_range_without_gap_and_neighbours_differ(explorer, method):
    answers = explorer.answers("Well, you are", **(ASK | {"method": method}))
    steered = answers.steered
    assert answers.base["method"] == "base" and set(steered["method"]) == {method}
    assert steered["alpha_low"].iloc[0] == 0 and answers.alpha_max == 2.0
    assert steered["alpha_low"].tolist()[1:] == steered["alpha_high"].tolist()[:-1]
    assert (steered["alpha_low"] < steered["alpha_high"]).all() and len(steered) > 1
    assert answers.distinct == steered["text"].str.strip().nunique()


@pytest.mark.parametrize("method", LOGIT)
@pytest.mark.parametrize("greedy", [False, True])
def test_the_answer_at_any_alpha_is_what_the_engine_gives_for_that_alpha_alone(
    explorer, tiny, method, greedy
):
    answers = explorer.answers("Well, you are", **(ASK | {"method": method}), seed=3, greedy=greedy)
    sampling = Sampling(temperature=0.0 if greedy else 0.7, top_p=1.0, min_p=0.02, max_new_tokens=8)
    alphas = [*middles(answers), 0.0, 0.83]
    arms = make_arms(
        method,
        alphas,
        profile="population",
        category="insult",
        sampling=sampling,
    )
    alone = decode(tiny, pd.DataFrame([{"prompt_id": "p1", "prompt": "Well, you are"}]), arms, seeds=[3])
    shown = pd.DataFrame([answers.at(alpha) for alpha in alphas])
    assert shown["text"].tolist() == alone["text"].tolist()
    assert shown["nll_per_token"].tolist() == pytest.approx(
        (alone["nll_base"] / alone["n_tokens"]).tolist(), nan_ok=True
    )


@pytest.mark.parametrize("method", LOGIT)
def test_the_base_is_the_unsteered_answer_which_for_sda_is_not_that_of_alpha_0(explorer, tiny, method):
    answers = explorer.answers("Well, you are", **(ASK | {"method": method}))
    asked = pd.DataFrame([{"prompt_id": "p1", "prompt": "Well, you are"}])
    plain = decode(tiny, asked, make_arms("base", sampling=SAMPLING))
    instructed = make_arms("instructed", profile="population", category="insult", sampling=SAMPLING)
    at_0 = plain if method != "sda" else decode(tiny, asked, instructed)
    assert answers.base["text"] == plain["text"].iloc[0]
    assert answers.at(0.0)["text"] == at_0["text"].iloc[0]
    assert (answers.at(0.0)["text"] == answers.base["text"]) == (method != "sda")


def test_a_breakpoint_belongs_to_the_answer_that_begins_there(explorer):
    answers = explorer.answers("Well, you are", **ASK)
    for _, row in answers.steered.iterrows():
        assert answers.at(row["alpha_low"])["text"] == row["text"]
    assert answers.at(2.0)["text"] == answers.steered["text"].iloc[-1]


def test_scores_are_those_of_the_text_in_the_same_row(explorer):
    for method in ("expert_anti_expert", "prompt_only"):
        table = explorer.answers("Well, you are", **(ASK | {"method": method})).table
        pd.testing.assert_frame_equal(table[list(ATTRIBUTES)], LetterScorer()(table["text"].tolist()))


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"greedy": True},
        {"max_new_tokens": 5},
        {"prompt_id": "p9"},
        {"category": "threat"},
        {"history": TURNS},
    ],
)
def test_each_setting_is_a_question_of_its_own(explorer, calls, changed):
    explorer.answers("Well, you are", **ASK)
    explorer.answers("Well, you are", **(ASK | changed))
    assert calls.count("alpha_path") == 2


def test_earlier_turns_are_read(explorer):
    plain, later = (explorer.answers("Well, you are", **ASK, history=turns) for turns in ("", TURNS))
    assert plain.base["nll_per_token"] != later.base["nll_per_token"]
    assert plain.steered["text"].tolist() != later.steered["text"].tolist()


@pytest.mark.parametrize("method", ["prompt_only", "instructed"])
def test_a_prompt_alone_is_off_at_0_and_on_at_1(explorer, calls, method):
    answers = explorer.answers("Well, you are", **(ASK | {"method": method}))
    assert calls == ["decode"] and not answers.exact
    assert answers.steered["alpha_low"].tolist() == answers.steered["alpha_high"].tolist() == [0, 1]
    assert answers.at(0.0)["text"] == answers.base["text"] != answers.at(1.0)["text"]


def test_a_vector_steers_whatever_the_category_and_is_decoded_once(explorer, calls):
    for category in ("insult", "threat"):
        answers = explorer.answers("Well, you are", category=category, method="caa", vector="polite")
    assert calls == ["decode"]
    assert answers.steered["kl_per_step"].iloc[0] == 0 < answers.steered["kl_per_step"].iloc[1]


def test_on_a_grid_the_nearest_alpha_is_taken(explorer):
    answers = explorer.answers("Well, you are", category="insult", method="caa", vector="polite")
    assert [answers.at(alpha)["alpha_low"] for alpha in (0.4, 0.6, 2.4, 9)] == [0, 1, 1, 4]


def test_contexts_and_positions_of_ones_own_are_used(tiny):
    own = {"insult": {"expert": "kind", "anti": "rude, rude, rude"}}
    made = [
        Explorer(
            tiny, LetterScorer(), vectors=[VectorFamily("v", {"": {1: torch.ones(tiny.d_model)}})], **changed
        )
        for changed in ({}, {"contexts": own, "positions": "prompt"})
    ]
    for ask in (ASK, {"category": "insult", "method": "caa", "vector": "v"}):
        seen = [explorer.answers("Well", **ask, max_new_tokens=6).steered for explorer in made]
        assert seen[0]["alpha_high"].tolist() + seen[0]["kl_per_step"].tolist() != pytest.approx(
            seen[1]["alpha_high"].tolist() + seen[1]["kl_per_step"].tolist(), nan_ok=True
        )


def test_a_small_row_budget_leaves_stretches_that_are_marked_and_drawn_as_gaps(tiny):
    explorer = Explorer(tiny, LetterScorer(), sampling=SAMPLING, row_budget=6)
    answers = explorer.answers("Well, you are", category="insult", method="sda")
    parted = answers.steered[~answers.steered["complete"]]
    assert len(parted) and answers.steered["complete"].any()
    assert f"{len(parted)} stretches are not complete" in summary(answers, 0.1)
    assert "not complete" in answers_html(answers, parted["alpha_low"].iloc[0], category="insult")
    assert answers_table(answers, "insult").to_html().count(">not complete</td>") == len(parted)
    heights = curve(answers, "insult")[1]
    assert [math.isnan(height) for height in heights[::2]] == (~answers.steered["complete"]).tolist()


def test_progress_counts_forward_passes_up_to_those_of_path_and_base(explorer):
    seen: list[tuple[int, int]] = []
    explorer.answers("Well, you are", **ASK, progress=lambda done, most: seen.append((done, most)))
    assert seen[0] == (1, 16) and seen[-1][0] > 8
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {most for _, most in seen} == {16} and max(done for done, _ in seen) <= 16
    assert not explorer.frozen.model._forward_hooks


@pytest.mark.parametrize(
    ("prompt", "changed", "message"),
    [
        ("  ", {}, "empty"),
        ("x" * 600, {}, "more than the 512"),
        ("Well", {"category": "rudeness"}, "'rudeness' is not an attribute"),
        ("Well", {"method": "base"}, "'base' is none of"),
        ("Well", {"method": "caa", "vector": "bitter"}, "'caa bitter' is none of"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused_in_words(explorer, prompt, changed, message):
    with pytest.raises(ValueError, match=message):
        explorer.answers(prompt, **(ASK | changed))


def test_a_vector_of_another_model_is_refused_showing_both_widths(tiny):
    with pytest.raises(ValueError, match=r"'alien' is 7 wide at layer 1, but .* is 32 wide"):
        Explorer(tiny, LetterScorer(), vectors=[VectorFamily("alien", {"": {1: torch.ones(7)}})])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"residual_alphas": (1.0, 2.0)}, "increase from 0"),
        ({"residual_alphas": (0.0,)}, "increase from 0"),
        ({"residual_alphas": (0.0, 2.0, 1.0)}, "increase from 0"),
        ({"alpha_max": 0}, "alpha_max must be above 0 and finite, not 0"),
        ({"sampling": Sampling(top_p=0.9)}, "top_p 0.9 has no exact alpha path"),
    ],
)
def test_a_range_that_cannot_be_explored_is_refused_at_once(tiny, changed, message):
    with pytest.raises(ValueError, match=message):
        Explorer(tiny, LetterScorer(), **changed)


def test_the_slider_shows_the_answer_of_its_alpha_without_decoding(widget, calls):
    assert (widget.alpha.max, widget.alpha.step) == (2.0, 0.01)
    pages = []
    for alpha, (_, segment) in zip(middles(widget.answers), widget.answers.steered.iterrows(), strict=True):
        widget.alpha.value = alpha
        pages.append(widget.page.value)
        low, high = (f"{round(segment[end], 4):g}" for end in ("alpha_low", "alpha_high"))
        assert f"alpha = {round(alpha, 4):g}, this answer from {low} to {high}" in widget.page.value
        assert widget.curves.widget.data[2].x == (alpha,)
        assert widget.curves.widget.data[2].y == (segment["insult"],)
    assert len(set(pages)) == len(pages) > 1 and calls == []


def test_choosing_a_prompt_takes_its_words_and_its_users_category(widget):
    widget.prompt.value = "p2"
    assert (widget.text.value, widget.category.value) == ("The weather in", "threat")
    expected = widget.explorer.answers(
        "The weather in", category="threat", method="expert_anti_expert", prompt_id="p2", history=TURNS
    )
    assert widget.answers is expected and "after 2 earlier turns" in widget.note.value


def test_words_of_ones_own_wait_for_the_button(widget, calls):
    widget.text.value = "My own words"
    assert widget.prompt.value == "typed" and calls == []
    assert "press Decode" in widget.note.value
    widget.button.click()
    assert calls == ["alpha_path", "decode"] and "breakpoints between alpha 0 and 2" in widget.note.value
    assert widget.settings()["history"] == ""


def test_the_range_of_the_slider_follows_the_method(widget):
    widget.alpha.value = 2.0
    widget.method.value = ("caa", "polite")
    assert (widget.alpha.max, widget.alpha.step) == (4.0, 1.0)
    widget.method.value = ("prompt_only", "")
    assert (widget.alpha.max, widget.alpha.value) == (1.0, 1.0)
    assert "Prompt only" in widget.page.value
    widget.method.value = ("anti_expert", "")
    assert (widget.alpha.max, widget.alpha.step) == (2.0, 0.01)
    assert "Anti-Expert" in widget.page.value


@pytest.mark.parametrize(
    ("words", "message"), [("   ", "the prompt is empty"), ("x" * 600, "more than the 512")]
)
def test_an_error_is_one_escaped_line_in_the_widget_and_leaves_no_stale_answer(widget, words, message):
    widget.text.value = words
    widget.button.click()
    assert message in widget.note.value and "explorer-error" in widget.note.value
    assert (
        widget.page.value == ""
        and widget.figure.layout.visibility == widget.bar.layout.visibility == "hidden"
    )
    widget.alpha.value = 2.0
    assert widget.page.value == ""
    widget.prompt.value = "p2"
    assert "explorer-error" not in widget.note.value and "alpha = 2" in widget.page.value


def test_of_several_quick_changes_in_a_running_kernel_only_the_last_is_decoded(widget, calls, monkeypatch):
    monkeypatch.setattr("steerlib.explorer.widget.PATIENCE", 0.05)

    async def turn() -> None:
        for seed in range(1, 6):
            widget.seed.value = seed
        assert calls == []
        await asyncio.sleep(0.5)

    asyncio.run(turn())
    assert calls == ["alpha_path", "decode"]
    expected = widget.explorer.answers("Well, you are", **ASK, seed=5)
    assert widget.answers is expected


@pytest.mark.parametrize("method", [("expert_anti_expert", ""), ("caa", "polite")])
def test_the_picture_shows_what_the_live_figure_shows(widget, method):
    widget.method.value = method
    left, right = curves_figure(widget.answers, "insult").axes
    live = widget.curves.widget.data
    assert list(left.lines[1].get_ydata()) == list(live[1].y)
    assert list(right.lines[1].get_ydata()) == list(live[4].y)
    assert list(left.lines[1].get_xdata()) == list(live[1].x)
    exact = method[0] != "caa"
    assert (left.lines[1].get_linestyle(), live[1].mode) == (("-", "lines") if exact else ("None", "markers"))
