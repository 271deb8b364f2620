"""What is written down at every step of a batch, and the answers that come of it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from steerlib.generation.requests import Request
from steerlib.generation.sampling import NEAR_TIE
from steerlib.models import FrozenModel


class Records:
    """Tokens and measures by answer and step. A row may be written to after its answer has ended: nobody reads that.

    Args:
        n: answers.
        steps: tokens of the longest.
        device: of the logits.

    Attributes:
        tokens: chosen, `(n, steps)`.
        gap: between the two best scores.
        nll: negative log-likelihood of the token under the unsteered base, nats.
        kl: KL(steered || base) of the step, nats.
    """

    def __init__(self, n: int, steps: int, device: torch.device) -> None:
        high = torch.float32 if device.type == "mps" else torch.float64
        self.tokens = torch.zeros(n, steps, dtype=torch.long, device=device)
        self.gap = torch.full((n, steps), torch.inf, device=device)
        self.nll = torch.zeros(n, steps, dtype=high, device=device)
        self.kl = torch.zeros_like(self.nll)
        self.measured = True

    def write(self, rows: Tensor, step: int | Tensor, **measures: Tensor) -> None:
        """Put down measures of some answers at a step, each under its name."""
        for name, values in measures.items():
            table = getattr(self, name)
            table[rows, step] = values.to(table.dtype)

    def unmeasured(self) -> None:
        """Likelihood and KL stay unknown, those of an empty answer too."""
        self.measured = False

    def rows(self, frozen: FrozenModel, requests: Sequence[Request], budget: Tensor) -> list[dict]:
        """Rows of the generations table.

        Args:
            frozen: the model, for its tokenizer.
            requests: the answers, in the order of the rows.
            budget: most tokens of each answer, `(n,)`.
        """
        steps = torch.arange(self.tokens.shape[1], device=budget.device)
        stop_ids = torch.tensor(sorted(frozen.stop_ids), device=budget.device)
        ended = torch.isin(self.tokens, stop_ids) & (steps < budget[:, None])
        stopped = ended.any(-1)
        counts = torch.where(stopped, ended.int().argmax(-1), budget)
        # The stop token itself was chosen too: it has a KL and may be a near-tie, but it is none of the answer.
        written, chosen = (steps < n[:, None] for n in (counts, counts + stopped))
        unknown = 0.0 if self.measured else torch.nan
        nll, kl = (
            (unknown + table.where(counted, 0).sum(-1)).tolist()
            for table, counted in ((self.nll, written), (self.kl, chosen))
        )
        ties, stops = ((self.gap < NEAR_TIE) & chosen).sum(-1).tolist(), stopped.tolist()
        ids = [row[:n] for row, n in zip(self.tokens.tolist(), counts.tolist(), strict=True)]
        texts = frozen.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            {
                "arm_id": request.arm_id,
                "prompt_id": request.prompt_id,
                "seed": request.seed,
                "text": texts[i],
                "token_ids": ids[i],
                "n_tokens": len(ids[i]),
                "stopped": stops[i],
                "nll_base": nll[i],
                "kl_to_base": kl[i],
                "near_ties": ties[i],
                "hardware": frozen.hardware,
            }
            for i, request in enumerate(requests)
        ]
