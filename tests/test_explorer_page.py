"""What the alpha explorer shows of its answers: text, table, summary and curve."""

import math

import pandas as pd
import pytest

from steerlib.explorer import Answers, answers_html, answers_table
from steerlib.explorer.page import curve, summary
from steerlib.toxicity import ATTRIBUTES


def found(*texts: str, exact: bool = True, **changed: object) -> Answers:
    """Answers made by hand: the base's, then one steered answer to each half unit of alpha."""
    numbers = {"n_tokens": 3, "stopped": True, "complete": True, "nll_per_token": 2.5}
    numbers |= {"kl_per_step": math.nan if exact else 0.125, **dict.fromkeys(ATTRIBUTES, 0.5)} | changed
    table = pd.DataFrame([{"text": text, "method": "anti_expert", **numbers} for text in texts])
    starts = [math.nan, *(i / 2 for i in range(len(texts) - 1))]
    ends = [start + 0.5 for start in starts] if exact else starts
    table = table.assign(alpha_low=starts, alpha_high=ends)
    table.loc[0, "method"] = "base"
    return Answers(table, exact)


def test_text_of_a_model_cannot_become_markup():
    page = answers_html(found("fine", '<img src=x onerror="alert(1)">'), 0.0, category="insult")
    assert "<img" not in page
    assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;" in page


@pytest.mark.parametrize("exact", [True, False])
def test_the_table_shows_every_answer_and_where_it_holds_and_escapes_it(exact):
    table = answers_table(found("fine", "same", "<b>$1 & $2</b>", exact=exact), "insult").to_html()
    assert "&lt;b&gt;$1 &amp; $2&lt;/b&gt;" in table and "<b>" not in table
    assert (
        ">base</td>" in table and ">0.5</td>" in table and ">2.50</td>" in table and ">Insult</th>" in table
    )
    assert (">alpha from</th>" in table and ">1</td>" in table) == exact
    assert (">KL/step</th>" in table) != exact and "nan" not in table


def test_what_both_answers_share_is_muted_up_to_a_whole_word():
    page = answers_html(found("you are kind", "you are kinder"), 0.0, category="insult")
    assert page.count(">you are </span>") == 2
    assert "</span>kinder</div>" in page


def test_an_empty_answer_is_called_empty_and_its_likelihood_undefined():
    page = answers_html(found("fine", "", nll_per_token=math.nan), 0.0, category="insult")
    assert "(empty answer)" in page and "undefined nats/token" in page


@pytest.mark.parametrize(
    ("exact", "where"), [(True, "this answer from 0.5 to 1"), (False, "answer decoded at 0.5")]
)
def test_the_page_says_where_the_answer_holds(exact, where):
    page = answers_html(found("a", "b", "c", exact=exact), 0.61, category="insult")
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
