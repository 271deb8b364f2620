import pytest
import torch
from torch.testing import assert_close

from steerlib.decoding import Sampling
from steerlib.decoding.sampling import gumbel_noise, text_hash


def noise(rows: int, vocab: int, *, seed: int = 0, step: int = 0) -> torch.Tensor:
    prompts = torch.arange(rows) * 7919
    return gumbel_noise(prompts, torch.full((rows,), seed), step, vocab, dtype=torch.float64)


def test_gumbel_noise_draws_from_the_softmax():
    z = torch.tensor([1.0, 0.0, -1.0, 2.0], dtype=torch.float64)
    rows = 40_000
    tokens = (z + noise(rows, 4)).argmax(-1)
    share = torch.bincount(tokens, minlength=4) / rows
    # Four standard errors of a share of 40,000 draws are at most 0.01.
    assert_close(share.double(), z.softmax(-1), atol=0.01, rtol=0)


def test_noise_depends_on_prompt_seed_step_and_token_and_on_nothing_else():
    one = gumbel_noise(torch.tensor([3, 9]), torch.tensor([0, 0]), 5, 100, dtype=torch.float64)
    other_batch = gumbel_noise(torch.tensor([9]), torch.tensor([0]), 5, 120, dtype=torch.float64)
    assert torch.equal(one[1], other_batch[0, :100])
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(
        one[1:], gumbel_noise(torch.tensor([9]), torch.tensor([1]), 5, 100, dtype=one.dtype)
    )
    assert not torch.equal(
        one[1:], gumbel_noise(torch.tensor([9]), torch.tensor([0]), 6, 100, dtype=one.dtype)
    )


def test_noise_of_neighbouring_counters_is_uncorrelated():
    rows = torch.stack([noise(1, 20_000, step=step)[0] for step in range(4)])
    off_diagonal = torch.corrcoef(rows) - torch.eye(4, dtype=torch.float64)
    assert off_diagonal.abs().max() < 0.03  # four standard errors of 20,000 pairs


def test_the_hash_of_a_prompt_is_the_same_on_every_machine():
    # The first four bytes of `printf c1 | sha256sum`, lowest first.
    assert text_hash("c1") == 3392272080


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], not 0.0"),
        ({"top_p": 1.0, "min_p": -0.1}, r"min_p must be in \[0, 1\], not -0.1"),
        ({"min_p": 0.1}, "min_p 0.1 and top_p 0.9 exclude each other"),
        ({"repetition_penalty": 0.9}, "repetition_penalty must be 1 or more, not 0.9"),
        ({"penalty_scope": "prompt"}, "penalty_scope must be one of .*, not 'prompt'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be 1 or more, not 0"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_value(setting, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**setting)
