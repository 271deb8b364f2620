import torch

from steerlib.generation import dense, sampling


def test_of_equal_scores_the_first_is_chosen_with_and_without_a_look():
    generator = torch.Generator().manual_seed(0)
    z = (8 * torch.randn(300, 2000, generator=generator)).round() / 8
    noise = torch.randn(300, 2000, generator=generator)
    temperature = (torch.arange(300) % 3 > 0) * 0.7
    assert ((z == z.amax(-1, keepdim=True)).sum(-1) > 1).sum() > 10
    for settings in ({}, {"top_p": torch.full((300,), 0.9)}, {"min_p": torch.full((300,), 0.05)}):
        for dice in (None, noise):
            heat = temperature if dice is not None else torch.zeros(300)
            expected, _ = sampling.choose(z, dice, heat, **settings)
            assert torch.equal(dense.choose(z, dice, heat, **settings)[0], expected)


def test_every_seen_token_is_penalised_and_no_other():
    generator = torch.Generator().manual_seed(1)
    z, seen = torch.randn(5, 40, generator=generator), torch.rand(5, 40, generator=generator) < 0.3
    penalty = torch.tensor([1.0, 1.1, 1.5, 2.0, 1.15])
    assert torch.equal(
        dense.penalise_(z.clone(), seen, penalty), sampling.penalise_(z.clone(), seen, penalty)
    )
