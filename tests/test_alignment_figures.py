import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from studies.truthful import plot_truthful

from steerlib.figures.alignment import plot_amplification, plot_js_temperature, plot_margins, token_strip_html
from steerlib.figures.published import SETS, published, published_sda, sda_headlines


def lines_by_label(fig):
    return {line.get_label(): line for line in fig.axes[0].lines}


def test_the_papers_amplification_is_drawn_with_its_values():
    fig = plot_amplification()
    line = lines_by_label(fig)["sigmoid (the paper's)"]
    x, y = line.get_data()
    assert np.interp(50, x, y) == pytest.approx(0.462, abs=1e-3)
    assert len([name for name in lines_by_label(fig) if not name.startswith("_")]) == 7
    assert not plt.get_fignums()


def test_the_steep_temperature_reaches_its_floor_where_the_formula_says():
    lines = lines_by_label(plot_js_temperature())
    steep = next(line for name, line in lines.items() if "repo_tf1" in name)
    mild = next(line for name, line in lines.items() if "repo_tf0" in name)
    x, y = steep.get_data()
    # 0.6 x 0.5^(JS/0.01) = 0.2 at JS = 0.01 log2(3)
    assert x[np.argmax(y <= 0.2 + 1e-12)] == pytest.approx(0.01 * np.log2(3), rel=0.05)
    assert mild.get_ydata().min() == pytest.approx(0.6 * 0.5**0.5, abs=1e-3)


def test_the_divergences_seen_are_shaded():
    seen = np.linspace(0, 0.1, 101)
    names = lines_by_label(plot_js_temperature(observed=seen))
    assert "median token, 0.05 nats" in names


def margins() -> pd.DataFrame:
    rows = [
        (d, c, v, v - 0.1, v + 0.1, 6, 1, 3)
        for d, v in (("honesty", 0.3), ("empathy", -0.2))
        for c in ("base", "instructed", "steering_only")
    ]
    return pd.DataFrame(
        rows, columns=["dimension", "comparator", "value", "low", "high", "win", "even", "lose"]
    )


def test_margins_are_drawn_with_their_counts():
    axis = plot_margins(margins()).axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["honesty", "empathy"]
    assert [text.get_text() for text in axis.texts] == ["6 won, 1 even, 3 lost"] * 6
    with pytest.raises(ValueError, match="one to 4 comparators can be drawn, not 0"):
        plot_margins(margins().head(0))


def test_the_strip_escapes_tokens_and_shades_by_divergence():
    page = token_strip_html(["<script>", "a\n", "b"], [0.0, 0.1, 0.2], title="<b>x").data
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;x" in page
    assert "\u21b5" in page
    body = page.split("</div>")[0]
    assert [part[:5] for part in body.split("rgba(230,159,0,")[1:]] == ["0.000", "0.500", "1.000"]


def test_a_strip_needs_a_divergence_for_each_token_within_its_range():
    with pytest.raises(ValueError, match=r"2 tokens have \(1,\) divergences"):
        token_strip_html(["a", "b"], [0.1])
    with pytest.raises(ValueError, match=r"divergence 0\.8 of token 1 is not in 0 to ln 2"):
        token_strip_html(["a", "b"], [0.1, 0.8])


def test_published_means_are_those_of_the_single_models():
    table = published_sda()
    own = table[table.comparison == "SDA vs base"].groupby(["rows", "set", "dimension"]).value.mean()
    printed = {
        "full": (81.7, 40.7, 37.7, 13.1, 46.8, 9.8, 28.4),
        "refined": (88.3, 40.4, 51.6, 12.0, 57.6, 9.1, 30.0),
    }
    for kind, values in printed.items():
        for column, value in zip(SETS, values, strict=True):
            assert own[(kind, *column)] == pytest.approx(value, abs=0.06), (kind, column)


def test_the_headlines_mix_full_and_refined_rows_and_agree_with_the_other_table():
    found = sda_headlines().set_index("headline")
    assert found.taken_from.to_dict() == {
        "helpfulness": "refined",
        "harmlessness": "full",
        "honesty": "refined",
    }
    assert (found.stated >= found[["full", "refined"]].max(axis=1) - 0.06).all()
    short = published().query("system == 'SDA'").set_index("setting").value
    assert found.stated.tolist() == [
        short[f"{name}, vs base, eight models"] for name in ("Helpful", "Harmless", "Honest")
    ]


def truthful() -> pd.DataFrame:
    rows = []
    for metric in ("mc1", "mc2"):
        rows += [
            ("base", 0.0, metric, "", 0.3, 0.2, 0.4, 50),
            ("instructed", 0.0, metric, "", 0.35, 0.25, 0.45, 50),
        ]
        rows += [("sda", a, metric, "", 0.3 + a / 20, 0.2, 0.5, 50) for a in (0.0, 1.0, 2.0)]
        rows += [("sda", a, metric, "base", a / 20, -0.1, 0.2, 50) for a in (0.0, 1.0, 2.0)]
    return pd.DataFrame(
        rows, columns=["method", "alpha", "metric", "comparator", "value", "low", "high", "n"]
    )


def test_truthful_measures_are_drawn_against_alpha_with_both_levels():
    fig = plot_truthful(truthful())
    assert [text.get_text() for text in fig.legends[0].texts] == ["Base", "Instruction only", "SDA"]
    assert [axis.get_ylabel()[:3] for axis in fig.axes] == ["MC1", "MC2"]
    fig = plot_truthful(truthful(), difference_from="base")
    assert "minus that of Base" in fig.axes[0].get_ylabel()
    with pytest.raises(ValueError, match="no differences from 'instructed'; there are base"):
        plot_truthful(truthful(), difference_from="instructed")
