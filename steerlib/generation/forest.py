"""The trees of an alpha path while they grow: a node is an interval of alpha and the tokens that it agrees on."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from steerlib.generation.envelope import Pieces, ScoreLines, upper_envelope
from steerlib.generation.joined import open_streams
from steerlib.generation.realignment import js_temperature
from steerlib.generation.requests import Request
from steerlib.generation.rules import base_nucleus
from steerlib.generation.sampling import gumbel_noise, text_hash
from steerlib.models import FrozenModel
from steerlib.vectors.residual import ResidualDose


def score_line(method: str, z: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Steered logits of a method as a line in alpha: intercept and slope, in float64 where the device has it.

    Args:
        method: one of `LOGIT_METHODS`.
        z: raw logits of its branches, `(rows, vocab)` each.
    """
    high = {name: _high(branch) for name, branch in z.items()}
    if method == "sda":
        return high["instructed"], high["instructed"] - high["base"]
    towards = high["base"] if method == "anti_expert" else high["expert"]
    return high["base"], towards - high["anti"]


def _high(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()


class Forest:
    """The trees of one batch while they grow: one tree a request, open nodes as rows."""

    def __init__(
        self,
        models: Mapping[str, FrozenModel],
        requests: Sequence[Request],
        *,
        alpha_max: float,
        nodes: int,
    ) -> None:
        self.frozen, self.requests, self.nodes = models[""], requests, nodes
        self.device, self.sampling = self.frozen.device, requests[0].sampling
        self.names = sorted(requests[0].branches)
        self.streams, index = open_streams(
            models,
            requests,
            rows_per_request=nodes,
            max_new_tokens=self.sampling.max_new_tokens,
            vectors=[],
            dose=ResidualDose(),
        )
        n, high = len(requests), _high(torch.zeros(1, device=self.device)).dtype
        self.tree = torch.arange(n, device=self.device)
        self.low = torch.zeros(n, dtype=high, device=self.device)
        self.high = torch.full_like(self.low, alpha_max)
        self.factor = torch.tensor([r.alpha / alpha_max for r in requests], device=self.device).to(self.low)
        slots = [[index[r.branches[name]] for name in self.names] for r in requests]
        self.slots = torch.tensor(slots, device=self.device)
        self.tokens = torch.zeros(n, 0, dtype=torch.long, device=self.device)
        self.nll = torch.zeros_like(self.low)
        self.stop_ids = torch.tensor(sorted(self.frozen.stop_ids), device=self.device)
        self.segments: list[dict] = []
        self.row_steps = 0

    def grow(self) -> list[dict]:
        """Decode until every node is closed; rows of the segments table, in no order."""
        z = self.streams.prefill()
        self.seen = torch.zeros(len(self.requests), z.shape[1], dtype=torch.bool, device=self.device)
        if self.sampling.penalty_scope == "prompt_and_generated":
            for row, request in enumerate(self.requests):
                self.seen[row, list(request.branches["base"].ids)] = True
        for step in range(self.sampling.max_new_tokens):
            self._split(self._envelope(z, step), z)
            stopped = torch.isin(self.tokens[:, -1], self.stop_ids)
            self._close(stopped, complete=True, stopped=True)
            if step + 1 == self.sampling.max_new_tokens:
                break
            self._close(self._over_budget(), complete=False)
            if not len(self.tree):
                break
            z = self._continue()
        self._close(torch.ones_like(self.tree, dtype=torch.bool), complete=True)
        return self.segments

    def _envelope(self, z: Tensor, step: int) -> Pieces:
        """The tokens chosen next and where, of all nodes."""
        sampling = self.sampling
        sampled = sampling.temperature > 0
        temperature = self._temperature(z)
        noise, place = self._noise(step, z) if sampled else (None, self.tree)

        def lines(nodes: Tensor) -> ScoreLines:
            intercept, slope = self._line(z, nodes)
            return ScoreLines(
                intercept,
                slope,
                temperature=temperature[nodes],
                noise=None if noise is None else noise[place[nodes]],
                seen=self.seen[nodes],
                penalty=sampling.repetition_penalty,
                min_p=sampling.min_p if sampled else 0.0,
            )

        return upper_envelope(lines, self.low, self.high, vocab=z.shape[1])

    def _branches(self, z: Tensor, nodes: Tensor) -> dict[str, Tensor]:
        return {name: z[self.slots[nodes, i]] for i, name in enumerate(self.names)}

    def _line(self, z: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """Intercept and slope of some nodes; alpha is the path's own, the prompt's factor lies in the slope."""
        branches = self._branches(z, nodes)
        intercept, slope = score_line(self.requests[0].method, branches)
        slope = slope * self.factor[self.tree[nodes], None]
        limit = self.requests[0].base_top_p
        if limit < 1:
            top_p = torch.full_like(branches["base"][:, 0], limit)
            outside = ~base_nucleus(branches["base"], top_p)
            intercept, slope = intercept.masked_fill(outside, -torch.inf), slope.masked_fill(outside, 0)
        return intercept, slope

    def _temperature(self, z: Tensor) -> Tensor:
        """Temperature of each node; it depends on the tokens so far, which all alphas of the node share."""
        sampling = self.sampling
        fixed = torch.full_like(self.low, sampling.temperature or 1.0)
        if not (sampling.js_sigma and sampling.temperature):
            return fixed
        branches = self._branches(z, torch.arange(len(self.tree), device=self.device))
        return js_temperature(
            branches["base"],
            branches["instructed"],
            t0=fixed,
            sigma=sampling.js_sigma,
            t_min=sampling.min_temperature,
        ).to(fixed)

    def _noise(self, step: int, z: Tensor) -> tuple[Tensor, Tensor]:
        """Noise of each tree that has nodes, and which of these trees each node is of."""
        trees, place = self.tree.unique(return_inverse=True)
        dice = [(text_hash(self.requests[t].prompt_id), self.requests[t].seed) for t in trees.tolist()]
        hashes, seeds = torch.tensor(dice, device=self.device).unbind(-1)
        return _high(gumbel_noise(hashes, seeds, step, z.shape[1], dtype=z.dtype)), place

    def _split(self, pieces: Pieces, z: Tensor) -> None:
        """A node for each piece, its token appended."""
        parent, token = pieces.row, pieces.token
        self._keep(parent)
        self.low, self.high = pieces.low, pieces.high
        base, place = self.slots[:, self.names.index("base")].unique(return_inverse=True)
        nll = z[base].logsumexp(-1)[place] - z[base[place], token]
        self.nll += torch.where(torch.isin(token, self.stop_ids), 0, nll)
        self.tokens = torch.cat([self.tokens, token[:, None]], 1)
        self.seen[torch.arange(len(token), device=self.device), token] = True

    def _keep(self, nodes: Tensor) -> None:
        for name in ("tree", "low", "high", "slots", "tokens", "nll", "seen"):
            setattr(self, name, getattr(self, name)[nodes])

    def _over_budget(self) -> Tensor:
        """Nodes that are not among their tree's widest, as many as the budget has room for."""
        width = pd.Series((self.high - self.low).tolist(), dtype=float)
        rank = width.groupby(self.tree.tolist()).rank(method="first", ascending=False)
        return torch.tensor((rank > self.nodes).tolist(), dtype=torch.bool, device=self.device)

    def _close(self, nodes: Tensor, *, complete: bool, stopped: bool = False) -> None:
        """Write nodes down as segments and drop them."""
        if not nodes.any():
            return
        ids = [row[: len(row) - stopped] for row in self.tokens[nodes].tolist()]
        texts = self.frozen.tokenizer.batch_decode(ids, skip_special_tokens=True)
        columns = (side[nodes].tolist() for side in (self.tree, self.low, self.high, self.nll))
        for tree, low, high, nll, text, token_ids in zip(*columns, texts, ids, strict=True):
            request = self.requests[tree]
            self.segments.append(
                {
                    "arm_id": request.arm_id,
                    "prompt_id": request.prompt_id,
                    "seed": request.seed,
                    "alpha_low": low,
                    "alpha_high": high,
                    "complete": complete,
                    "text": text,
                    "token_ids": token_ids,
                    "n_tokens": len(token_ids),
                    "stopped": stopped,
                    "nll_base": nll,
                }
            )
        self._keep(~nodes)

    def _continue(self) -> Tensor:
        """Append each node's token to its branches; nodes that still agree share them."""
        vocab = self.seen.shape[1]
        pairs = self.slots * vocab + self.tokens[:, -1:]
        distinct, place = pairs.unique(return_inverse=True)
        slot, z = self.streams.advance(distinct // vocab, distinct % vocab)
        self.slots = slot[place]
        self.row_steps += len(distinct)
        return z
