import pytest
import torch
from torch.testing import assert_close

from steerlib.rules import anti_expert, base_nucleus, check_method, expert_anti_expert

Z_BASE = torch.tensor([[1.0, 0.0, -1.0]])
Z_EXPERT = torch.tensor([[0.0, 2.0, 1.0]])
Z_ANTI = torch.tensor([[3.0, 1.0, 0.0]])


def test_expert_anti_expert_by_hand():
    # 1 + 2 (0 - 3) = -5; 0 + 2 (2 - 1) = 2; -1 + 2 (1 - 0) = 1
    assert_close(expert_anti_expert(Z_BASE, Z_EXPERT, Z_ANTI, 2.0), torch.tensor([[-5.0, 2.0, 1.0]]))


def test_anti_expert_by_hand():
    # 1 + 0.5 (1 - 3) = 0; 0 + 0.5 (0 - 1) = -0.5; -1 + 0.5 (-1 - 0) = -1.5
    assert_close(anti_expert(Z_BASE, Z_ANTI, 0.5), torch.tensor([[0.0, -0.5, -1.5]]))


def test_alpha_zero_gives_the_base_logits_bit_for_bit():
    z = torch.randn(3, 3, 50, generator=torch.Generator().manual_seed(1))
    assert torch.equal(expert_anti_expert(*z, 0.0), z[0])
    assert torch.equal(anti_expert(z[0], z[1], 0.0), z[0])


def test_the_base_as_expert_makes_expert_anti_expert_the_anti_expert_rule():
    assert torch.equal(expert_anti_expert(Z_BASE, Z_BASE, Z_ANTI, 1.3), anti_expert(Z_BASE, Z_ANTI, 1.3))


def test_anti_expert_is_classifier_free_guidance_with_scale_one_plus_alpha():
    alpha = 2.2
    conditional, negative = Z_BASE.log_softmax(-1), Z_ANTI.log_softmax(-1)
    guided = negative + (1 + alpha) * (conditional - negative)
    assert_close(anti_expert(Z_BASE, Z_ANTI, alpha).softmax(-1), guided.softmax(-1))


def test_a_constant_added_to_a_branch_leaves_the_distribution():
    shifted = expert_anti_expert(Z_BASE + 3, Z_EXPERT - 5, Z_ANTI + 7, 1.5)
    assert_close(shifted.softmax(-1), expert_anti_expert(Z_BASE, Z_EXPERT, Z_ANTI, 1.5).softmax(-1))


def test_each_row_has_its_own_alpha():
    z = [Z.repeat(2, 1) for Z in (Z_BASE, Z_EXPERT, Z_ANTI)]
    rows = expert_anti_expert(*z, torch.tensor([0.0, 2.0]))
    assert torch.equal(rows[0], Z_BASE[0])
    assert torch.equal(rows[1], expert_anti_expert(Z_BASE, Z_EXPERT, Z_ANTI, 2.0)[0])


def test_branches_of_different_shape_are_refused_with_all_shapes():
    with pytest.raises(ValueError, match=r"base \(1, 3\), expert \(1, 2\), anti-expert \(1, 3\)"):
        expert_anti_expert(Z_BASE, Z_EXPERT[:, :2], Z_ANTI, 1.0)


@pytest.mark.parametrize("alpha", [float("nan"), float("inf")])
def test_an_alpha_that_is_not_finite_is_refused(alpha):
    with pytest.raises(ValueError, match="alpha must be finite"):
        anti_expert(Z_BASE, Z_ANTI, alpha)


def test_an_unknown_method_is_refused_naming_those_there_are():
    with pytest.raises(ValueError, match="'antiexpert' is none of base, prompt_only, anti_expert"):
        check_method("antiexpert")


def test_the_bases_nucleus_by_hand():
    # probabilities 0.5, 0.2, 0.2, 0.1: above the second pair lie 0.5, above the last 0.9
    z = torch.tensor([[0.2, 0.5, 0.1, 0.2]]).log().double()
    for top_p, expected in [(0.4, "0100"), (0.55, "1101"), (0.85, "1101"), (0.95, "1111"), (1.0, "1111")]:
        inside = base_nucleus(z, torch.tensor([top_p]))
        assert "".join(str(int(kept)) for kept in inside[0]) == expected, top_p


def test_each_row_has_its_own_nucleus_and_a_whole_one_keeps_tokens_of_no_weight():
    z = torch.tensor([[0.0, -1e9, 50.0]]).repeat(2, 1)
    inside = base_nucleus(z, torch.tensor([0.9, 1.0]))
    assert inside.tolist() == [[False, False, True], [True, True, True]]
