import dataclasses
import math

import pytest
import torch
from test_decoding import GREEDY, PROMPTS

from steerlib.decoding import make_arms
from steerlib.decoding.decode import Records
from steerlib.decoding.requests import make_requests

STOP = 0


@pytest.fixture
def requests(tiny):
    arms = make_arms("base", sampling=dataclasses.replace(GREEDY, max_new_tokens=3))
    return make_requests(tiny, PROMPTS, arms, seeds=[0])


def filled() -> Records:
    """An answer that stops at its second token, one that has all three, and one that stops at once."""
    records = Records(3, 3, torch.device("cpu"))
    rows = torch.arange(3)
    for step, tokens in enumerate(([5, 6, STOP], [STOP, 7, 8], [9, 5, 9])):
        records.write(
            rows,
            step,
            tokens=torch.tensor(tokens),
            nll=torch.tensor([1.0, 2.0, 4.0]) + step,
            kl=torch.tensor([0.5, 0.25, 0.125]),
            gap=torch.tensor([1.0, 1e-4, 1e-4]),
        )
    return records


def test_what_was_written_after_the_stop_counts_for_nothing(tiny, requests):
    rows = filled().rows(tiny, requests, torch.tensor([3, 3, 3]))
    assert [row["token_ids"] for row in rows] == [[5], [6, 7, 5], []]
    assert [row["stopped"] for row in rows] == [True, False, True]
    # The stop token has a KL and may be a near-tie, but its likelihood is none of the answer's.
    assert [row["nll_base"] for row in rows] == [1.0, 2.0 + 3.0 + 4.0, 0.0]
    assert [row["kl_to_base"] for row in rows] == [2 * 0.5, 3 * 0.25, 0.125]
    assert [row["near_ties"] for row in rows] == [0, 3, 1]


def test_a_stop_behind_the_last_token_that_an_answer_may_have_is_none(tiny, requests):
    rows = filled().rows(tiny, requests, torch.tensor([1, 2, 3]))
    assert [row["token_ids"] for row in rows] == [[5], [6, 7], []]
    assert [row["stopped"] for row in rows] == [False, False, True]


def test_what_was_not_measured_is_missing_for_an_empty_answer_too(tiny, requests):
    records = filled()
    records.unmeasured()
    rows = records.rows(tiny, requests, torch.tensor([3, 3, 3]))
    assert all(math.isnan(row[name]) for row in rows for name in ("nll_base", "kl_to_base"))
