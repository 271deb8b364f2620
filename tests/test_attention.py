import pytest
import torch

from steerlib.attention import packed_attention


@pytest.mark.parametrize("masked", [True, False])
def test_packed_attention_is_torchs_attention(masked):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, seq, 8, generator=generator, dtype=torch.float64)
        for heads, seq in ((6, 1), (2, 5), (2, 5))
    )
    mask = torch.rand(3, 1, 1, 5, generator=generator) < 0.7
    mask[..., 0] = True
    found, _ = packed_attention(torch.nn.Module(), query, key, value, mask if masked else None)
    whole = [x.repeat_interleave(3, dim=1) for x in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, *whole, attn_mask=mask if masked else None
    )
    torch.testing.assert_close(found, expected.transpose(1, 2))
