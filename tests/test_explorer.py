"""The alpha explorer: its answers, what it shows of them, and its widgets driven by setting their values."""

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import torch

from steerlib import explorer as ex
from steerlib.decoding import Sampling, VectorFamily, alpha_path, decode, make_arms
from steerlib.explorer import AlphaExplorer, Answers, Explorer
from steerlib.explorer.page import curve, summary
from steerlib.models import FrozenModel
from steerlib.tables import SCHEMA, write_table
from steerlib.toxicity import ATTRIBUTES, text_sha
from steerlib.vectors import save_family

TURNS = '[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]'
PROMPTS = pd.DataFrame(
    {
        "prompt_id": ["p1", "p2"],
        "prompt": ["Well, you are", "The weather in"],
        "history": ["", TURNS],
        "category": ["insult", "threat"],
    }
)


SAMPLING = Sampling(top_p=1.0, min_p=0.1, max_new_tokens=5)


class LetterScorer:
    """A scorer by hand: each attribute is the share of one letter among the first ten characters."""

    id = "letters"

    def __call__(self, texts: list[str]) -> pd.DataFrame:
        shares = [[text[:10].lower().count(letter) / 10 for letter in "etaoin"] for text in texts]
        return pd.DataFrame(shares, columns=list(ATTRIBUTES))


def explore(tiny: FrozenModel, **changed: Any) -> Explorer:
    both = {1: torch.ones(tiny.d_model), 2: torch.ones(tiny.d_model)}
    settings = {"sampling": SAMPLING, "vectors": [VectorFamily("polite", {"": both})], "alpha_max": 2.0}
    return Explorer(tiny, LetterScorer(), **(settings | {"residual_alphas": (0.0, 1.0, 4.0)} | changed))


@pytest.fixture(scope="module")
def explorer(tiny: FrozenModel) -> Explorer:
    """Shared by the tests, so that what one of them decoded is free to the others."""
    return explore(tiny)


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


def test_each_question_is_decoded_once_and_its_base_once_for_all_methods(tiny, calls):
    explorer = explore(tiny)
    first = explorer.answers("Well, you are", **ASK)
    assert calls == ["decode", "alpha_path"] and first.exact
    assert explorer.answers("Well, you are", **ASK) is first
    explorer.answers("Well, you are", **(ASK | {"category": "threat", "method": "anti_expert"}))
    assert calls == ["decode", "alpha_path", "alpha_path"]
    for changed in (
        {"seed": 1},
        {"greedy": True},
        {"max_new_tokens": 3},
        {"prompt_id": "p9"},
        {"history": TURNS},
    ):
        assert explorer.answers("Well, you are", **(ASK | changed)) is not first
    assert calls.count("alpha_path") == 7


@pytest.mark.parametrize("method", LOGIT)
def test_the_segments_cover_the_range_without_gap_and_neighbours_differ(explorer, method):
    answers = explorer.answers("Well, you are", **(ASK | {"method": method}))
    steered = answers.steered
    assert answers.base["method"] == "base" and set(steered["method"]) == {method}
    assert steered["alpha_low"].iloc[0] == 0 and answers.alpha_max == 2.0
    assert steered["alpha_low"].tolist()[1:] == steered["alpha_high"].tolist()[:-1]
    assert (steered["alpha_low"] < steered["alpha_high"]).all() and len(steered) > 1
    assert answers.distinct == steered["text"].str.strip().nunique()


@pytest.mark.parametrize(
    ("method", "greedy"), [("anti_expert", True), ("expert_anti_expert", False), ("sda", False)]
)
def test_the_answer_at_any_alpha_is_what_the_engine_gives_for_that_alpha_alone(
    explorer, tiny, method, greedy
):
    answers = explorer.answers("Well, you are", **(ASK | {"method": method}), greedy=greedy)
    sampling = replace(SAMPLING, temperature=0.0 if greedy else SAMPLING.temperature)
    alphas = [*middles(answers), 0.0, 0.83]
    arms = make_arms(method, alphas, profile="population", category="insult", sampling=sampling)
    prompt = pd.DataFrame([{"prompt_id": "p1", "prompt": "Well, you are"}])
    alone = decode(tiny, prompt, arms)
    shown = pd.DataFrame([answers.at(alpha) for alpha in alphas])
    assert shown["text"].tolist() == alone["text"].tolist()
    nll = (alone["nll_base"] / alone["n_tokens"]).tolist()
    assert shown["nll_per_token"].tolist() == pytest.approx(nll, nan_ok=True)
    assert answers.base["text"] == decode(tiny, prompt, make_arms("base", sampling=sampling))["text"].iloc[0]
    assert (answers.at(0.0)["text"] == answers.base["text"]) == (method != "sda")
    pd.testing.assert_frame_equal(
        answers.table[[*ATTRIBUTES]], LetterScorer()(answers.table["text"].tolist())
    )


def test_earlier_turns_are_read(explorer):
    plain, later = (explorer.answers("Well, you are", **ASK, history=turns) for turns in ("", TURNS))
    assert plain.base["nll_per_token"] != later.base["nll_per_token"]
    assert plain.steered["text"].tolist() != later.steered["text"].tolist()


@pytest.mark.parametrize("method", ["prompt_only", "instructed"])
def test_a_prompt_alone_is_off_at_0_and_on_at_1(explorer, calls, method):
    answers = explorer.answers("Well, you are", **(ASK | {"method": method}))
    assert set(calls) == {"decode"} and not answers.exact
    assert answers.steered["alpha_low"].tolist() == answers.steered["alpha_high"].tolist() == [0, 1]
    assert answers.at(0.0)["text"] == answers.base["text"] != answers.at(1.0)["text"]


def test_a_vector_steers_whatever_the_category_and_is_decoded_once(explorer):
    found = [
        explorer.answers("Well, you are", category=category, method="caa", vector="polite")
        for category in ("insult", "threat")
    ]
    assert found[0] is found[1]
    assert found[0].steered["kl_per_token"].iloc[0] == 0 < found[0].steered["kl_per_token"].iloc[1]


def test_on_a_grid_the_nearest_alpha_is_taken(explorer):
    answers = explorer.answers("Well, you are", category="insult", method="caa", vector="polite")
    assert [answers.at(alpha)["alpha_low"] for alpha in (0.4, 0.6, 2.4, 9)] == [0, 1, 1, 4]


def test_progress_counts_forward_passes_up_to_those_of_path_and_base(tiny):
    seen: list[tuple[int, int]] = []
    explore(tiny).answers("Well", **ASK, progress=lambda done, most: seen.append((done, most)))
    assert seen[0] == (1, 10) and 5 < seen[-1][0] <= 10 and seen == sorted(seen)
    assert not tiny.model._forward_hooks


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


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"residual_alphas": (1.0, 2.0)}, "residual_alphas"),
        ({"residual_alphas": (0.0,)}, "residual_alphas"),
        ({"residual_alphas": (0.0, 2.0, 1.0)}, "residual_alphas"),
        ({"sampling": Sampling(top_p=0.9)}, "top_p 0.9"),
        (
            {"vectors": [VectorFamily("alien", {"": {1: torch.ones(7)}})]},
            "7 wide at layer 1, but .* is 32 wide",
        ),
    ],
)
def test_what_cannot_be_explored_is_refused_at_once(tiny, changed, message):
    with pytest.raises(ValueError, match=message):
        explore(tiny, **changed)


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
    assert calls == ["decode", "alpha_path"] and "breakpoints between alpha 0 and 2" in widget.note.value
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
    assert calls == ["decode", "alpha_path"]
    expected = widget.explorer.answers("Well, you are", **ASK, seed=5)
    assert widget.answers is expected


@pytest.mark.parametrize("method", [("expert_anti_expert", ""), ("caa", "polite")])
def test_the_picture_shows_what_the_live_figure_shows(widget, method):
    widget.method.value = method
    left, right = ex.curves_figure(widget.answers, "insult").axes
    live = widget.curves.widget.data
    assert list(left.lines[1].get_ydata()) == list(live[1].y)
    assert list(right.lines[1].get_ydata()) == list(live[4].y)
    assert list(left.lines[1].get_xdata()) == list(live[1].x)
    exact = method[0] != "caa"
    assert (left.lines[1].get_linestyle(), live[1].mode) == (("-", "lines") if exact else ("None", "markers"))


def found(*texts: str, exact: bool = True, **changed: object) -> Answers:
    """Answers made by hand: the base's, then one steered answer to each half unit of alpha."""
    numbers = {"n_tokens": 3, "stopped": True, "complete": True, "nll_per_token": 2.5}
    numbers |= {"kl_per_token": math.nan if exact else 0.125, **dict.fromkeys(ATTRIBUTES, 0.5)} | changed
    table = pd.DataFrame([{"text": text, "method": "anti_expert", **numbers} for text in texts])
    starts = [math.nan, *(i / 2 for i in range(len(texts) - 1))]
    ends = [start + 0.5 for start in starts] if exact else starts
    table = table.assign(alpha_low=starts, alpha_high=ends)
    table.loc[0, "method"] = "base"
    return Answers(table, exact)


def test_text_of_a_model_cannot_become_markup():
    page = ex.answers_html(found("fine", '<img src=x onerror="alert(1)">'), 0.0, category="insult")
    assert "<img" not in page
    assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;" in page


@pytest.mark.parametrize("exact", [True, False])
def test_the_table_shows_every_answer_and_where_it_holds_and_escapes_it(exact):
    table = ex.answers_table(found("fine", "same", "<b>$1 & $2</b>", exact=exact), "insult").to_html()
    assert "&lt;b&gt;$1 &amp; $2&lt;/b&gt;" in table and "<b>" not in table
    assert (
        ">base</td>" in table and ">0.5</td>" in table and ">2.50</td>" in table and ">Insult</th>" in table
    )
    assert (">alpha from</th>" in table and ">1</td>" in table) == exact
    assert (">KL/token</th>" in table) != exact and "nan" not in table


def test_what_both_answers_share_is_muted_up_to_a_whole_word():
    page = ex.answers_html(found("you are kind", "you are kinder"), 0.0, category="insult")
    assert page.count(">you are </span>") == 2
    assert "</span>kinder</div>" in page


def test_an_empty_answer_is_called_empty_and_its_likelihood_undefined():
    page = ex.answers_html(found("fine", "", nll_per_token=math.nan), 0.0, category="insult")
    assert "(empty answer)" in page and "undefined nats per token" in page


@pytest.mark.parametrize(
    ("exact", "where"), [(True, "this answer from 0.5 to 1"), (False, "answer decoded at 0.5")]
)
def test_the_page_says_where_the_answer_holds(exact, where):
    page = ex.answers_html(found("a", "b", "c", exact=exact), 0.61, category="insult")
    assert f"alpha = 0.61, {where}" in page and "no steering" in page
    assert ("KL to the base" in page) != exact


def test_the_summary_counts_answers_and_breakpoints_and_says_what_a_grid_leaves_open():
    assert summary(found("a", "a", "b", "a"), 1.25) == (
        "2 different answers, 2 breakpoints between alpha 0 and 1.5, in 1.2 s"
    )
    assert "3 alphas in 1.2 s, 2 different answers" in summary(found("a", "a", "b", "a", exact=False), 1.25)


def test_the_curve_of_a_path_has_both_ends_of_every_answer_and_that_of_a_grid_its_points():
    path, grid = (found("a", "b", "c", exact=exact) for exact in (True, False))
    for answers in (path, grid):
        answers.table["insult"] = [0.9, 0.1, 0.2]
    assert curve(path, "insult") == ([0, 0.5, 0.5, 1], [0.1, 0.1, 0.2, 0.2])
    assert curve(grid, "insult") == ([0, 0.5], [0.1, 0.2])


def test_without_a_run_there_are_prompts_of_its_own(tmp_path):
    own = ex.run_prompts(tmp_path)
    assert sorted(own["category"]) == sorted(ATTRIBUTES)
    assert ex.run_vectors(tmp_path) == []


def test_a_runs_test_prompts_come_most_toxic_base_answer_first_and_its_vectors_are_taken(tmp_path):
    prompts = pd.DataFrame({"prompt_id": list("abcd"), "split": ["test", "dev", "test", "test"]})
    write_table(tmp_path, "prompts", prompts.reindex(columns=SCHEMA["prompts"].columns, fill_value=""))
    assert ex.run_prompts(tmp_path)["prompt_id"].tolist() == ["a", "c", "d"]
    arms = pd.DataFrame({"arm_id": ["b0", "s1"], "control": ["base", ""]})
    write_table(tmp_path, "arms", arms.reindex(columns=SCHEMA["arms"].columns, fill_value=""))
    answers = pd.DataFrame(
        {
            "arm_id": ["b0", "b0", "s1"],
            "prompt_id": ["a", "c", "d"],
            "text": ["fine", "rude", "rude"],
            "seed": 0,
        }
    )
    write_table(tmp_path, "generations", answers.reindex(columns=SCHEMA["generations"].columns, fill_value=0))
    scores = pd.DataFrame(
        {"text_sha": [text_sha("fine"), text_sha("rude")], "toxicity": [0.1, 0.9], "scorer": "s"}
    )
    write_table(tmp_path, "scores", scores.reindex(columns=SCHEMA["scores"].columns, fill_value=0.0))
    save_family(
        tmp_path / "vectors" / "mean.safetensors", VectorFamily("mean", {"": {2: torch.arange(3.0)}}), {}
    )
    assert ex.run_prompts(tmp_path)["prompt_id"].tolist() == ["c", "a", "d"]
    (family,) = ex.run_vectors(tmp_path)
    assert family.of("")[2].tolist() == [0, 1, 2]


def test_a_breakpoint_belongs_to_the_answer_that_begins_there():
    answers = found("base", "a", "b")
    assert [answers.at(alpha)["text"] for alpha in (0.0, 0.49, 0.5, 1.0)] == ["a", "a", "b", "b"]


def test_a_stretch_that_is_not_complete_is_marked_and_drawn_as_a_gap():
    answers = found("base", "a", "b")
    answers.table["complete"] = [True, False, True]
    assert "1 stretches are not complete" in summary(answers, 0.1)
    assert "not complete" in ex.answers_html(answers, 0.0, category="insult")
    assert ex.answers_table(answers, "insult").to_html().count(">not complete</td>") == 1
    assert [math.isnan(height) for height in curve(answers, "insult")[1]] == [True, True, False, False]
