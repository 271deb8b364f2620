import numpy as np
import pandas as pd
import pytest
import torch

from steerlib.vectors import (
    choose_threshold,
    prompt_projections,
    prompt_residuals,
)

PROMPTS = pd.DataFrame(
    {"prompt_id": list("abcd"), "prompt": ["Why?", "How so?", "Who, then?", "Where to, and when?"]}
)
VECTOR = {1: torch.linspace(-1, 2, 32, dtype=torch.float64)}
SETTINGS = {"layer": 1, "style": "continuation"}


def labelled(values, labels):
    index = [f"p{i}" for i in range(len(values))]
    return pd.Series(values, index=index, dtype=float), pd.Series(labels, index=index)


def test_a_projection_is_a_length_along_the_unit_vector(tiny):
    along = prompt_projections(tiny, PROMPTS, VECTOR, **SETTINGS)
    residual = prompt_residuals(tiny, PROMPTS, layers=[1], style="continuation")[1]
    assert along.index.tolist() == list("abcd")
    np.testing.assert_allclose(along, residual @ VECTOR[1] / VECTOR[1].norm())
    np.testing.assert_allclose(along, prompt_projections(tiny, PROMPTS, {1: 5 * VECTOR[1]}, **SETTINGS))


def test_the_threshold_lies_between_the_prompts_it_separates():
    assert choose_threshold(*labelled([1, 2, 5, 7], [False, False, True, True])) == (3.5, 1.0)


def test_each_kind_of_prompt_counts_the_same_however_many_there_are():
    values, labels = [0.0] * 8 + [1.0, 2.0], [False] * 7 + [True, False, True]
    found = choose_threshold(*labelled(values, labels))
    assert found == (1.5, 0.75)


def test_of_equally_good_thresholds_the_highest_is_taken_whatever_the_order():
    values, labels = [1, 2, 3, 4], [True, False, True, False]
    projections, wanted = labelled(values, labels)
    found = choose_threshold(projections, wanted)
    assert found == choose_threshold(projections.iloc[::-1], wanted) == (np.inf, 0.5)
    equal = choose_threshold(*labelled([1, 2, 3, 4], [False, True, False, True]))
    assert equal == (3.5, 0.75)  # 1.5 separates as well


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([1, 2], [True, True], "all 2 prompts have the label True"),
        ([1, 2], [False, False], "all 2 prompts have the label False"),
        ([1, np.nan], [True, False], "the projection of prompt p1 is not finite"),
    ],
)
def test_prompts_that_cannot_be_separated_are_refused(values, labels, message):
    with pytest.raises(ValueError, match=message):
        choose_threshold(*labelled(values, labels))


def test_a_prompt_without_a_label_is_named():
    projections, labels = labelled([1, 2], [True, False])
    with pytest.raises(ValueError, match="prompt p1 has a projection and no label"):
        choose_threshold(projections, labels[:1])


def test_a_vector_that_cannot_decide_is_refused(tiny):
    with pytest.raises(ValueError, match=r"the gate's vector has layers \[1\], not 2"):
        prompt_projections(tiny, PROMPTS, VECTOR, layer=2, style="chat")
    with pytest.raises(ValueError, match="zero at layer 1"):
        prompt_projections(tiny, PROMPTS, {1: torch.zeros(32)}, layer=1, style="chat")
