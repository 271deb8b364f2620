"""The alpha explorer: its answers, what it shows of them, its widgets without a browser, and blind preferences."""

import json
import math
import re
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

from steerlib import explorer as ex
from steerlib.decoding import Sampling, VectorFamily, alpha_path, decode, make_arms
from steerlib.explorer import AlphaExplorer, Explorer, Question
from steerlib.explorer.page import SLOT, changed_words
from steerlib.explorer.questions import PROMPT_COLUMNS
from steerlib.models import FrozenModel, load_model
from steerlib.tables import SCHEMA, write_table
from steerlib.toxicity import ATTRIBUTES, text_sha

TURNS = '[{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."}]'
PROMPTS = pd.DataFrame(
    [
        ("p1", "Well, you are", "", "insult", "", "", ""),
        ("p2", "The weather in", TURNS, "threat", "profanity", "eee", "u2"),
    ],
    columns=PROMPT_COLUMNS,
)
SAMPLING = Sampling(top_p=1.0, min_p=0.1, max_new_tokens=5)
ASK = Question("Well, you are", prompt_id="p1", category="insult", max_new_tokens=5)
CAA = replace(ASK, method="caa", vector="polite")


class LetterScorer:
    """A scorer by hand: each attribute is the share of one letter among the first ten characters."""

    id = "letters"

    def __call__(self, texts: list[str]) -> pd.DataFrame:
        shares = [[text[:10].lower().count(letter) / 10 for letter in "etaoin"] for text in texts]
        return pd.DataFrame(shares, columns=list(ATTRIBUTES))


def explore(tiny: FrozenModel, **changed: Any) -> Explorer:
    both = {1: torch.ones(tiny.d_model), 2: torch.ones(tiny.d_model)}
    families = [VectorFamily("polite", {"": both}), VectorFamily("polite", {"u2": both}, vector_user="own")]
    settings = {"sampling": SAMPLING, "vectors": families, "alpha_max": 2.0}
    return Explorer(tiny, LetterScorer(), **(settings | {"residual_alphas": (0.0, 1.0, 4.0)} | changed))


@pytest.fixture(scope="module")
def explorer(tiny: FrozenModel) -> Explorer:
    """Shared by the tests, so that what one of them decoded is free to the others."""
    return explore(tiny)


@pytest.fixture
def widget(explorer: Explorer, monkeypatch: pytest.MonkeyPatch) -> AlphaExplorer:
    monkeypatch.setattr("steerlib.explorer.widget.PATIENCE", 0.0)
    shown = AlphaExplorer(explorer, PROMPTS, ranges={("expert_anti_expert", ""): (1.0, 0.5, math.nan)})
    shown.ask()
    shown.wait()
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


def test_a_base_that_all_methods_share_comes_first_then_the_answer_at_alpha_then_all_then_their_tokens(
    tiny, calls
):
    explorer, seen = explore(tiny), []
    base, one, path, told = explorer.stages(ASK, alpha=0.7, report=lambda *now: seen.append(now))
    assert calls == ["decode", "decode", "alpha_path"]
    assert (len(base.table), len(one.table), one.at(0.7)["alpha_low"]) == (1, 2, 0.7)
    assert one.at(0.7)["text"] == path.at(0.7)["text"] and path.exact and told.tokens
    assert seen[0][:2] == (1, 15) and 10 < seen[-1][0] <= 15 and seen == sorted(seen, key=lambda now: now[0])
    assert base.base["text"].startswith(next(text for *_, text in seen if text))
    assert not tiny.model._forward_pre_hooks and explorer.answers(ASK).table is told.table
    explorer.answers(replace(ASK, category="threat", method="anti_expert"))
    assert calls[3:] == ["alpha_path"]


@pytest.mark.parametrize(
    ("method", "greedy"), [("anti_expert", True), ("expert_anti_expert", False), ("sda", False)]
)
def test_segments_cover_the_range_and_the_answer_at_any_alpha_and_its_kl_are_what_that_alpha_alone_gives(
    explorer, tiny, method, greedy
):
    answers = explorer.answers(replace(ASK, method=method, greedy=greedy))
    low, high = (answers.steered[end].to_numpy() for end in ("alpha_low", "alpha_high"))
    assert low[0] == 0 and high[-1] == 2.0 and low[1:].tolist() == high[:-1].tolist() != []
    assert [answers.at(alpha)["alpha_low"] for alpha in low] == low.tolist()
    sampling = replace(SAMPLING, temperature=0.0 if greedy else SAMPLING.temperature)
    alphas = [*(low + high) / 2, 0.0, 0.83]
    arms = make_arms(method, alphas, profile="population", category="insult", sampling=sampling)
    alone = decode(tiny, PROMPTS[:1], arms)
    shown = pd.DataFrame([answers.at(alpha) for alpha in alphas])
    assert shown["text"].tolist() == alone["text"].tolist()
    whole = np.flatnonzero(~alone["stopped"][:-2] & (alone["n_tokens"][:-2] > 0))
    kl = (alone["kl_to_base"] / alone["n_tokens"]).to_numpy()[whole]
    assert shown["kl_per_token"].to_numpy()[whole] == pytest.approx(kl, abs=1e-4)
    assert (answers.at(0.0)["text"] == answers.base["text"]) == (method != "sda")
    ratio = np.exp(shown["nll_per_token"] - answers.base["nll_per_token"])
    assert shown["perplexity_ratio"].tolist() == pytest.approx(ratio.tolist(), nan_ok=True)


@pytest.mark.parametrize("question", [ASK, CAA, replace(ASK, vector="polite", vector_alpha=0.5)])
def test_each_token_carries_its_probability_under_the_base_and_steered_and_every_branchs_best(
    explorer, question
):
    answers = explorer.answers(question)
    assert len(answers.tokens) == len(answers.table)
    for row, tokens in zip(answers.table.to_dict("records"), answers.tokens, strict=True):
        assert "".join(token["text"] for token in tokens) == row["text"] and len(tokens) == row["n_tokens"]
        nll = np.mean([-math.log(token["base"]) for token in tokens] or [math.nan])
        assert nll == pytest.approx(row["nll_per_token"], abs=1e-3, nan_ok=True)
    names = [name for name, _ in answers.tokens[-1][0]["tops"]]
    assert names[-1] == "steered" and {"base"} < {*names}
    if question is CAA:  # whose first answer is at alpha 0
        assert all(token["steered"] == pytest.approx(token["base"], abs=1e-5) for token in answers.tokens[1])


def test_a_prompt_alone_is_off_at_0_and_on_at_1(explorer, calls):
    answers = explorer.answers(replace(ASK, method="prompt_only"))
    assert set(calls) == {"decode"} and not answers.exact
    assert answers.steered["alpha_low"].tolist() == answers.steered["alpha_high"].tolist() == [0, 1]
    assert answers.at(0.0)["text"] == answers.base["text"] != answers.at(1.0)["text"]


def test_a_vector_steers_whatever_the_category_at_the_nearest_alpha_of_its_grid(explorer):
    answers = explorer.answers(CAA)
    other = explorer.answers(replace(CAA, category="threat"))
    assert other.table is answers.table and other.question.category == "threat"
    assert [answers.at(alpha)["alpha_low"] for alpha in (0.4, 0.6, 2.4, 9)] == [0, 1, 1, 4]
    assert answers.steered["kl_per_token"].iloc[0] == 0 < answers.steered["kl_per_token"].iloc[1]


@pytest.mark.parametrize(
    "changed", [{"layers": (2, 2)}, {"unit": "residual"}, {"vector": "own polite", "user": "u2"}]
)
def test_layers_unit_and_user_choose_the_vector(explorer, changed):
    plain, other = (
        explorer.answers(replace(CAA, **new)).steered["kl_per_token"].tolist() for new in ({}, changed)
    )
    assert (other == pytest.approx(plain)) == ("user" in changed)


def test_a_vector_beside_a_rule_steers_on_a_grid_and_without_strength_is_no_other_question(explorer):
    beside = replace(ASK, vector="polite", vector_alpha=0.5)
    answers = explorer.answers(beside)
    assert not answers.exact and answers.at(0.0)["kl_per_token"] > 0 and len(answers.steered) == 9
    assert explorer.answers(replace(beside, vector_alpha=0.0)).table is explorer.answers(ASK).table


REFUSED = [
    ({"prompt": "  "}, "empty"),
    ({"prompt": "x" * 600}, "512"),
    ({"method": "caa", "vector": "polite", "layers": (3, 3)}, "none in 3..3"),
    ({"method": "caa", "vector": "own polite", "user": "u9"}, "u9"),
]


@pytest.mark.parametrize(("changed", "named"), REFUSED)
def test_a_question_that_cannot_be_answered_is_refused(explorer, changed, named):
    with pytest.raises(ValueError, match=named):
        explorer.answers(replace(ASK, **changed))


def test_more_than_the_free_memory_is_refused_with_both_numbers_before_decoding(tiny, calls, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=123_000))
    needed = explore(tiny).estimate(ASK).needed
    with pytest.raises(MemoryError, match=f"{needed / 1e9:.1f} GB and .* s, .* 0.0 GB"):
        explore(tiny).answers(ASK)
    assert calls == [] and explore(tiny).estimate(replace(ASK, max_new_tokens=50)).needed > needed


@pytest.mark.slow
def test_the_memory_estimate_of_a_prompt_of_3000_tokens_is_within_half_of_what_it_takes(monkeypatch):
    for name in ("decoding.alpha_path", "explorer.session"):  # a quarter of the rows, and of the gigabytes
        monkeypatch.setattr(sys.modules[f"steerlib.{name}"], "ROW_BUDGET", 24)
    explorer = Explorer(load_model(device="cpu"), LetterScorer(), sampling=SAMPLING)
    explorer.answers(replace(ASK, max_new_tokens=2))  # what libraries keep is no part of it
    question = replace(ASK, prompt=" ".join(["cat and dog"] * 1000), max_new_tokens=16)
    taken = [psutil.Process().memory_info().rss]
    with closing(
        explorer.stages(question, report=lambda *_: taken.append(psutil.Process().memory_info().rss))
    ) as stages:
        assert any(answers.exact for answers in stages)
    peak, needed = max(taken) - taken[0], explorer.estimate(question).needed
    assert needed > 2e9 and needed / 1.5 < peak < 1.5 * needed


def test_alphas_that_do_not_increase_and_vectors_of_another_model_are_refused_at_once(tiny):
    alien = VectorFamily("alien", {"": {1: torch.ones(7)}})
    for changed, named in (
        ({"residual_alphas": (1.0, 2.0)}, "residual_alphas"),
        ({"residual_alphas": (0.0, 2.0, 1.0)}, "residual_alphas"),
        ({"vectors": [alien]}, "7 wide at layer 1"),
    ):
        with pytest.raises(ValueError, match=named):
            explore(tiny, **changed)


def test_the_view_gets_all_answers_and_the_marks_of_the_run(widget):
    data = widget.view.data
    assert json.loads(json.dumps(data, allow_nan=False)) and widget.state.value.startswith("idle: ")
    assert (data["alpha_max"], data["step"], data["chosen"], data["range"]) == (2.0, 0.01, 1.0, None)
    assert len(data["steered"]) == len(widget.answers.steered) and not widget.view.stale
    shown = ["".join(text for text, *_ in answer["pieces"]) for answer in data["steered"]]
    assert shown == widget.answers.steered["text"].tolist()


def test_choosing_a_prompt_takes_its_words_its_category_its_turns_and_its_accepted_answer(widget):
    widget.prompt.value = "p2"
    widget.wait()
    asked = widget.question()
    assert (asked.prompt, asked.category, asked.history) == ("The weather in", "threat", TURNS)
    assert widget.view.data["accepted"][0] == 0.3
    widget.profile.value = "shuffled"
    widget.wait()
    assert widget.answers.question.category == "profanity" and widget.category.disabled


def test_words_of_ones_own_dim_what_is_shown_wait_for_the_button_and_may_fail_in_one_line(widget, calls):
    widget.text.value = "My own words"
    assert (widget.prompt.value, widget.view.stale, calls) == ("typed", True, [])
    widget.button.click()
    widget.wait()
    assert (calls[-1], widget.view.data["prompt"]) == ("alpha_path", "My own words")
    assert not widget.view.stale
    widget.text.value = "  "
    widget.button.click()
    widget.wait()
    assert widget.state.value == "failed: the prompt is empty" and widget.view.stale


def test_a_newer_question_replaces_an_older_one_and_cancel_stops_within_a_step(widget, calls, monkeypatch):
    reached, go = threading.Event(), threading.Event()
    stages = widget.explorer.stages

    def slow(question: Question, **rest: Any) -> Any:
        reached.set()
        go.wait(10)
        yield from stages(question, **rest)

    monkeypatch.setattr(widget.explorer, "stages", slow)
    widget.seed.value = 11
    older = widget._thread
    assert reached.wait(10)
    widget.seed.value = 12
    go.set()
    older.join()
    widget.wait()
    assert calls.count("alpha_path") == 1 and widget.answers.question.seed == 12
    go.clear()
    widget.seed.value = 13
    widget.stop.click()
    go.set()
    widget.wait()
    assert widget.state.value == "cancelled" and widget.answers.question.seed == 12 and widget.view.stale


def test_an_interrupt_between_two_cells_cancels(explorer, monkeypatch):
    kernel = SimpleNamespace(saved_sigint_handler=signal.SIG_IGN)
    monkeypatch.setattr("steerlib.explorer.widget.get_ipython", lambda: SimpleNamespace(kernel=kernel))
    shown = AlphaExplorer(explorer, PROMPTS)
    kernel.saved_sigint_handler(signal.SIGINT, None)
    assert shown.state.value == "cancelled"


HOSTILE = "</script><img src=x onerror=\"alert(1)\"> $1 & 'x' \u2028"


def test_text_of_a_model_cannot_become_markup_on_any_page(explorer, tmp_path):
    fine = explorer.answers(ASK)
    pages = [ex.page_data(replace(fine, table=fine.table.assign(text=HOSTILE), tokens=()), explorer)]
    (tmp_path / "report.html").write_text(f"<meta content=\"default-src 'none'\">{''.join(SLOT)}")
    ex.publish(tmp_path, pages)
    ex.publish(tmp_path, pages)
    again = (tmp_path / "report.html").read_text("utf-8")
    alone = (tmp_path / "figures" / "alpha_explorer.html").read_text("utf-8")
    for page in (alone, ex.embedded_page(pages).data, again):
        assert "<img" not in page
    assert again.count("<script>") == 1 and again.count("script-src 'sha256-") == 1
    assert "default-src 'none'" in alone
    assert re.findall("https?://[^\"']*", alone) == ["http://www.w3.org/2000/svg"]


def test_words_that_differ_from_the_base_are_marked():
    text = "you are kinder, really"
    changed = changed_words("you are kind", text)
    marked = "".join(sign if new else "." for sign, new in zip(text, changed, strict=True))
    assert marked == "........kinder,.really"


def rows(columns: str, *lines: str) -> pd.DataFrame:
    return pd.DataFrame([line.split() for line in lines], columns=columns.split())


def of_run(folder, **tables: pd.DataFrame) -> None:
    for name, table in tables.items():
        fill = 0.0 if name == "scores" else ""
        write_table(folder, name, table.reindex(columns=SCHEMA[name].columns, fill_value=fill))


def test_openings_come_first_then_the_runs_prompts_most_toxic_base_answer_first(tmp_path):
    alone = ex.run_prompts(tmp_path, first=["hostile41", "hostile05"])
    assert alone["prompt_id"].tolist()[:2] == ["hostile41", "hostile05"] and len(alone) == 12
    assert ex.run_ranges(tmp_path) == {}
    shas = f"{text_sha('fine')} .1 s", f"{text_sha('rude')} .9 s"
    of_run(
        tmp_path,
        prompts=rows("prompt_id split", "a test", "b dev", "c test", "d test"),
        arms=rows("arm_id control method family", "b0 base base -", "s1 - caa mean").replace("-", ""),
        generations=rows("arm_id prompt_id text seed", "b0 a fine 0", "b0 c rude 0", "s1 d rude 0"),
        scores=rows("text_sha toxicity scorer", *shas).astype({"toxicity": float}),
        verdict=rows("method arm_id alpha alpha_low alpha_high", "CAA s1 .3 .1 .4"),
    )
    assert ex.run_prompts(tmp_path)["prompt_id"].tolist()[12:] == ["c", "a", "d"]
    assert ex.run_ranges(tmp_path) == {("caa", "mean"): (".3", ".1", ".4")}


@pytest.fixture
def pairs(tmp_path) -> pd.DataFrame:
    answers = [f"{arm} q{i} {'same' if i == 3 else arm} 0" for i in range(20) for arm in ("s", "c")]
    texts = rows("arm_id prompt_id text seed", *answers).astype({"seed": int})
    prompts = rows("prompt_id prompt split", *(f"q{i} q{i} test" for i in range(20)))
    of_run(tmp_path, prompts=prompts, generations=texts)
    return ex.blind_pairs(tmp_path, ["s", "c"], n=12)


def judge(panel: ex.BlindPanel, prefer: str, n: int) -> None:
    """Take the arm whose text begins so."""
    for _ in range(n):
        number = panel.pair["number"]
        panel.choose(1 if panel.pair["texts"][0].startswith(prefer) else 2, number, 1.5)
        panel.choose(1, number, 1.5)  # a second press of the key changes nothing


def test_a_session_of_a_plain_name_goes_on_after_a_crash_and_its_win_rate_and_order_are_counted(
    tmp_path, pairs
):
    for name in ("", "../up", ".hidden"):
        with pytest.raises(ValueError, match="rater"):
            ex.BlindPanel(tmp_path, pairs, rater=name)
    assert len(pairs) == 12 and "q3" not in set(pairs["prompt_id"])
    judge(ex.BlindPanel(tmp_path, pairs, rater="ann"), "s", 5)
    with (tmp_path / "preferences" / "ann.jsonl").open("a") as file:
        file.write('{"rater": "ann", "prom')
    judge(ex.BlindPanel(tmp_path, pairs, rater="ann"), "s", 7)
    assert "texts" not in ex.BlindPanel(tmp_path, pairs, rater="ann").pair
    choices = ex.read_choices(tmp_path)
    assert len(choices) == 12 and set(choices["first"]) == {"s", "c"}
    (row,) = ex.preference_results(choices).to_dict("records")
    assert (row["win_rate"], row["high"], row["n"], row["n_raters"]) == (1.0, 1.0, 12, 1)
    assert 0.6 < row["low"] < 1
    assert row["first_rate"] == (choices["first"] == "s").mean() and math.isnan(row["kappa"])


def test_two_raters_agreement_is_cohens_kappa(tmp_path, pairs):
    judge(ex.BlindPanel(tmp_path, pairs, rater="ann"), "s", 12)
    judge(ex.BlindPanel(tmp_path, pairs, rater="bob"), "c", 12)
    (row,) = ex.preference_results(ex.read_choices(tmp_path)).to_dict("records")
    assert (row["win_rate"], row["kappa"], row["n_prompts"]) == (0.5, 0.0, 12)
    ratings = pd.DataFrame(np.random.default_rng(0).integers(0, 3, (30, 2)))
    assert ex.agreement(ratings) == pytest.approx(cohen_kappa_score(ratings[0], ratings[1]))
    assert math.isnan(ex.agreement(ratings * 0)) and math.isnan(ex.agreement(ratings[:0]))
