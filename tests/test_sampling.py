import pytest
import torch
from torch.testing import assert_close

from steerlib.decoding import Sampling
from steerlib.decoding.sampling import gumbel_noise, text_hash


def noise(*prompts: int, vocab: int = 100, seed: int = 0, step: int = 0) -> torch.Tensor:
    seeds = torch.full((len(prompts),), seed)
    return gumbel_noise(torch.tensor(prompts), seeds, step, vocab, dtype=torch.float64)


def test_gumbel_noise_draws_from_the_softmax():
    z = torch.tensor([1.0, 0.0, -1.0, 2.0], dtype=torch.float64)
    tokens = (z + noise(*range(40_000), vocab=4)).argmax(-1)
    share = torch.bincount(tokens, minlength=4) / 40_000
    # Four standard errors of a share of 40,000 draws are at most 0.01.
    assert_close(share.double(), z.softmax(-1), atol=0.01, rtol=0)


def test_noise_depends_on_prompt_seed_step_and_token_and_on_nothing_else():
    one = noise(3, 9, step=5)[1:]
    assert torch.equal(one, noise(9, vocab=120, step=5)[:, :100])
    for other in (noise(3, step=5), noise(9, step=5, seed=1), noise(9, step=6)):
        assert not torch.equal(one, other)


def test_noise_of_neighbouring_counters_is_uncorrelated():
    rows = torch.cat([noise(0, vocab=20_000, step=step) for step in range(4)])
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
