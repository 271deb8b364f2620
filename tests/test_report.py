"""The report holds everything, loads nothing, and no text of a model or a person acts on any surface of HTML."""

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from steerlib import figures as fg
from steerlib.tables import ATTRIBUTE_COLUMNS, SCHEMA, write_manifest, write_table
from steerlib.toxicity import text_sha

ATTACK = '<script>alert("x")</script><img src="https://example.org/x.png" onerror=1>{{ 7 * 7 }}$\\input{x}'


class Page(HTMLParser):
    """Tags of a page and every address in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        named = ("src", "href", "srcset", "data", "action")
        self.addresses += [value or "" for name, value in attrs if name in named]
        assert not [name for name, _ in attrs if name.startswith("on")]


def table(name: str, *rows: dict[str, object]) -> pd.DataFrame:
    """Rows of a table, with the attack in every column that is not given."""
    return pd.DataFrame([dict.fromkeys(SCHEMA[name].columns, ATTACK) | row for row in rows])


@pytest.fixture
def run(tmp_path: Path, arms: pd.DataFrame) -> Path:
    """A run in which every text is an attack."""
    numbers = dict.fromkeys(SCHEMA["verdict"].columns, 0.25) | {"n": 12}
    said = f"{ATTACK}; perplexity x 1.10. Operating range: alpha 1."
    texts = {"method": ATTACK, "arm_id": "arm4", "control_arm": "arm5", "sentence": said}
    write_table(tmp_path, "verdict", pd.DataFrame([numbers | texts]))
    write_table(tmp_path, "arms", arms.assign(model=ATTACK))
    prompt = {"prompt_id": "p", "user_id": ATTACK, "split": "test", "accepted": None}
    write_table(tmp_path, "prompts", table("prompts", prompt))
    given = [{"arm_id": arm, "prompt_id": "p", "seed": 0, "text": ATTACK} for arm in arms["arm_id"]]
    write_table(tmp_path, "generations", table("generations", *given))
    six = dict.fromkeys(ATTRIBUTE_COLUMNS, 0.75)
    write_table(tmp_path, "scores", table("scores", {"text_sha": text_sha(ATTACK), **six}))
    profile = {"attribute": "insult", "sensitivity": 0.1, "percentile": 0.9, "primary": True}
    write_table(tmp_path, "profiles", table("profiles", profile))
    params = {"model": ATTACK, "scorer": ATTACK, "synthetic": True}
    write_manifest(tmp_path, "04_evaluation", params, seconds=1.5)
    figure = fg.say(fg.new_figure()[0], "title", ATTACK)
    fg.save(figure, "one", tmp_path, data=pd.DataFrame({"x": [1]}))
    return tmp_path


def examples(run: Path, arms: pd.DataFrame) -> object:
    shown = arms[arms["arm_id"].isin(["arm0", "arm4"])]
    answers, prompts = (pd.read_parquet(run / "tables" / name) for name in ("generations", "prompts"))
    return fg.examples_html(answers, shown, prompts, toxicity=fg.kept_toxicity(run, [ATTACK]))


def test_no_text_acts_on_any_surface_and_the_report_loads_nothing(run: Path, arms) -> None:
    side_by_side = examples(run, arms)
    report = fg.write_report(run, figures=["one"], examples=side_by_side).read_text()
    for text in (report, side_by_side.data):
        page = Page(text)
        assert not {"script", "link", "iframe", "object"} & set(page.tags)
        assert "&lt;script&gt;" in text
        assert "{{ 7 * 7 }}" in text
        assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert Page(report).tags.count("img") == 1
    assert not re.search(r"url\(|@import", report)
    assert "\\input" not in (run / "report" / "verdict.tex").read_text()


def test_hovering_shows_an_answer_and_obeys_none(metrics, arms) -> None:
    names = ("toxicity_difference", "perplexity_ratio")
    columns = [fg.points(metrics, arms, name, comparator="arm0") for name in names]
    fig = fg.plot_tradeoff(*columns, dict.fromkeys(arms["arm_id"], ATTACK))
    texts = [text for trace in fig.data for (text,) in trace.customdata]
    assert len(texts) == len(arms) - 1
    assert "toxicity difference -0.200 [-0.500, -0.100]" in texts[0]
    for text in texts:
        assert set(Page(text).tags) <= {"b", "br"}
        assert "&lt;script&gt;" in text


def test_the_report_begins_with_the_verdict_and_folds_everything_else(run: Path, arms) -> None:
    text = fg.write_report(run, figures=["one"], examples=examples(run, arms)).read_text()
    parts = ("verdict", "figures", "answers", "explorer", "settings", "provenance")
    order = [text.index(f'id="{name}"') for name in parts]
    assert order == sorted(order)
    for anchor in re.findall(r'href="#(\w+)"', text):
        assert f'id="{anchor}"' in text
    assert "SYNTHETIC" in text
    assert "Mean toxicity of the base on test prompts: 0.250." in text
    assert "[toxicity 0.75]" in text  # in the user's table
    assert "Percentile among users: Insult 90%" in text
    assert "{x}</td><td>\u2013</td>" in text  # of the user's prompt, no answer was accepted
    assert re.findall("<li>(.*?)</li>", text) == ["perplexity x 1.10", "operating range: alpha 1."]
    assert "23.37" in text  # a published number
    written = ["published.csv", "published.tex", "verdict.csv", "verdict.tex"]
    assert sorted(one.name for one in (run / "report").iterdir()) == written
    shutil.rmtree(run / "tables" / "profiles")  # prompts without users have no section of users
    text = fg.write_report(run, figures=["one"], examples=examples(run, arms)).read_text()
    assert "Percentile among users" not in text


def test_a_report_without_its_figure_is_refused_and_the_old_one_stays(run: Path, arms) -> None:
    (run / "report.html").write_text("old")
    with pytest.raises(FileNotFoundError, match="'dose'"):
        fg.write_report(run, figures=["dose"], examples=examples(run, arms))
    assert (run / "report.html").read_text() == "old"


def test_unpleasant_answers_wait_behind_a_click_and_prompts_need_an_answer_of_every_arm(arms) -> None:
    shown, prompts = arms.head(2), pd.DataFrame({"prompt_id": ["p", "q"], "prompt": ["Why?", "How?"]})
    answers = pd.DataFrame({"arm_id": ["arm0", "arm1", "arm0", "arm1"], "prompt_id": ["p", "p", "q", "p"]})
    answers = answers.assign(seed=[0, 0, 0, 1], text=["mild", "vile", "mild", "x"])
    page = fg.examples_html(answers, shown, prompts, toxicity={"mild": 0.1, "vile": 0.9}).data
    assert "<i>toxicity 0.10</i>\nmild" in page
    assert "<summary><i>toxicity 0.90</i>: show</summary>vile</details>" in page
    assert "How?" not in page
    with pytest.raises(ValueError, match="2 arms"):
        fg.examples_html(answers[answers["arm_id"] == "arm0"], shown, prompts)
