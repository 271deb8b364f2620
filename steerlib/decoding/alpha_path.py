"""The alpha path: every answer that a logit rule gives over [0, alpha_max], with the alphas at which it changes.

With greedy choice or fixed noise the next token is a piecewise constant function of alpha, see `envelope`. A node of
the alpha-path tree is an interval of alpha and the tokens that all its alphas agree on; where the next token differs
within the interval, the node splits. All open nodes are rows of one batch, and a prefix is decoded once for all alphas
that share it.
"""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Unpack

import pandas as pd
import torch
from torch import Tensor

from steerlib.decoding.decode import check_finite, halved, noise_keys, prompt_tokens, shared_noise
from steerlib.decoding.requests import Inputs, Request, make_requests
from steerlib.decoding.sampling import Pieces, ScoreLines, upper_envelope
from steerlib.decoding.streams import MultiModelStreams, default_capacity
from steerlib.models import FrozenModel, high_precision
from steerlib.reading import with_thoughts
from steerlib.rules import RULES, acting_on, js_temperature
from steerlib.tables import SCHEMA

ROW_BUDGET = 96
"""Rows of a forward pass that one prompt and seed may hold; the widest intervals go on, the others end incomplete."""


def alpha_path(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arm: pd.DataFrame,
    *,
    seeds: Sequence[int] = (0,),
    **inputs: Unpack[Inputs],
) -> pd.DataFrame:
    """Every distinct answer from alpha 0 to an arm's own alpha, with exact breakpoints.

    At any alpha strictly inside a segment, `decode` at that alpha gives the segment's answer (the model in float64;
    in float32 another batch shape may part at a near-tie). The breakpoints are exact for the logits at hand.

    The arm is one row of the arms table, of a method that acts on logits, greedy or sampled with top_p = 1 (min_p is
    the nucleus that goes with a path); a ValueError says that it is not. Its alpha, above 0, is the end of the range. A
    temperature by divergence is exact too: it does not depend on alpha. The rest as in `decode`.

    Returns the segments table, ordered by alpha within prompt and seed: `[alpha_low, alpha_high)`, the last closed;
    without gap or overlap; neighbours differ. `complete` is false where `text` is only what the segment's alphas have
    in common so far, see `ROW_BUDGET`.

    Source: ours. Och (ACL 2003) walks the upper envelope of lines over one model weight for given lists of
    translations; here every step of decoding has an envelope of its own, and the lines may bend.
    """
    (row,) = arm.to_dict("records")
    method, alpha_max = row["method"], row["alpha"]
    if method not in acting_on("logits") or row["family"]:
        raise ValueError(
            f"an alpha path is of {', '.join(acting_on('logits'))} without vectors, not of {method!r}"
        )
    if alpha_max <= 0:
        raise ValueError(f"alpha must be above 0, the end of the path, not {alpha_max}")
    if row["temperature"] and row["top_p"] < 1:
        raise ValueError(
            f"top_p {row['top_p']} has no exact alpha path: the mass of a nucleus is not linear in alpha. "
            "Use top_p=1, with min_p for a nucleus that is"
        )
    requests = make_requests(frozen, prompts, arm, seeds=seeds, **inputs)
    models = {"": frozen, **(inputs.get("branch_models") or {})}
    # Rounded up: few prompts hold all the rows that they may.
    together = -(-default_capacity([*models.values()], requests) // ROW_BUDGET)
    batches = [requests[first : first + together] for first in range(0, len(requests), together)]

    grown = halved(batches, lambda batch: AlphaPathTrees(models, batch, alpha_max).grow())
    segments = pd.DataFrame(list(chain.from_iterable(grown)), columns=[*SCHEMA["segments"].columns])
    # Neighbours with the same answer are one segment.
    answer = segments[["prompt_id", "seed", "complete"]].assign(ids=segments.token_ids.map(tuple))
    starts = (answer != answer.shift()).any(axis=1)
    ends = segments.groupby(starts.cumsum()).alpha_high.last()
    return segments[starts].assign(alpha_high=ends.to_numpy()).reset_index(drop=True)


class AlphaPathTrees:
    """The alpha-path trees of one batch while they grow: one per request, open nodes as rows.

    Attributes:
        tree, low, high, slots, tokens, nll, seen: of each open node, its request and what belongs to its prefix.
        segments: closed nodes in no order: number of the request, row of the segments table.
    """

    def __init__(
        self, models: Mapping[str, FrozenModel], requests: Sequence[Request], alpha_max: float
    ) -> None:
        self.frozen, self.requests = models[""], requests
        self.sampling, self.rule = requests[0].sampling, RULES[requests[0].method]
        self.names, device, n = sorted(requests[0].branches), self.frozen.device, len(requests)
        self.nodes = ROW_BUDGET // len(self.names)
        self.streams = MultiModelStreams(
            models, requests, rows_per_request=self.nodes, max_new_tokens=self.sampling.max_new_tokens
        )
        self.tree = torch.arange(n, device=device)
        self.low = high_precision(torch.zeros(n, device=device))
        self.high = torch.full_like(self.low, alpha_max)
        self.factor = self.low.new_tensor([r.alpha / alpha_max for r in requests])
        slots = [[self.streams.slot[r.branches[name]] for name in self.names] for r in requests]
        self.slots = torch.tensor(slots, device=device)
        self.tokens = torch.zeros(n, 0, dtype=torch.long, device=device)
        self.nll = high_precision(torch.zeros(n, 0, device=device))
        self.keys = noise_keys(requests, device)
        self.stop_ids = torch.tensor(sorted(self.frozen.stop_ids), device=device)
        self.segments: list[tuple[int, dict]] = []

    @torch.inference_mode()
    def grow(self) -> list[dict]:
        """Decode until every node is closed; the segments by request and alpha."""
        z = self.streams.prefill()
        self.seen = prompt_tokens(self.requests, z.shape[1], z.device)
        for step in range(self.sampling.max_new_tokens):
            check_finite(z.sum(-1)[self.slots].sum(-1), self.requests, self.tree, step, z)
            self._split(self._envelope(z, step), z)
            stopped = torch.isin(self.tokens[:, -1], self.stop_ids)
            self._close(stopped, complete=True, stopped=True)
            if step + 1 == self.sampling.max_new_tokens:
                break
            # Nodes that are not among their tree's widest, as many as the budget has room for.
            width = pd.Series((self.high - self.low).tolist(), dtype=float).groupby(self.tree.tolist())
            crowded = (width.rank(method="first", ascending=False) > self.nodes).tolist()
            self._close(torch.tensor(crowded, dtype=torch.bool, device=z.device), complete=False)
            if not len(self.tree):
                break
            self.slots, z = self.streams.append(self.slots, self.tokens[:, -1], z.shape[1])
        self._close(torch.ones_like(self.tree, dtype=torch.bool), complete=True)
        return [row for _, row in sorted(self.segments, key=lambda one: (one[0], one[1]["alpha_low"]))]

    def _envelope(self, z: Tensor, step: int) -> Pieces:
        """The tokens chosen next and where, of all nodes."""
        sampling, temperature = self.sampling, torch.full_like(self.low, self.sampling.temperature or 1.0)
        if sampling.js_sigma and sampling.temperature:
            # All alphas of a node share its tokens, hence its divergence.
            z_own = self._branches(z, slice(None))
            settings = {"t0": temperature, "sigma": sampling.js_sigma, "t_min": sampling.min_temperature}
            temperature = js_temperature(z_own["base"], z_own["instructed"], **settings)
        trees, place = self.tree.unique(return_inverse=True)
        noise = high_precision(shared_noise(self.keys[trees], step, z)) if sampling.temperature else None

        def lines(nodes: Tensor) -> ScoreLines:
            # Alpha is the path's own; the prompt's factor lies in the slope.
            branches = self._branches(z, nodes)
            intercept, slope = self.rule.line({name: high_precision(one) for name, one in branches.items()})
            return ScoreLines(
                intercept,
                slope * self.factor[self.tree[nodes], None],
                temperature=temperature[nodes],
                noise=None if noise is None else noise[place[nodes]],
                seen=self.seen[nodes],
                penalty=sampling.repetition_penalty,
                min_p=sampling.min_p if sampling.temperature else 0.0,
            )

        return upper_envelope(lines, self.low, self.high, vocab=z.shape[1])

    def _branches(self, z: Tensor, nodes: Tensor | slice) -> dict[str, Tensor]:
        return {name: z[self.slots[nodes, i]] for i, name in enumerate(self.names)}

    def _split(self, pieces: Pieces, z: Tensor) -> None:
        """A node for each piece, its token appended."""
        token = pieces.token
        self._keep(pieces.row)
        self.low, self.high = pieces.low, pieces.high
        base, place = self.slots[:, self.names.index("base")].unique(return_inverse=True)
        nll = z[base].logsumexp(-1)[place] - z[base[place], token]
        self.nll = torch.cat([self.nll, torch.where(torch.isin(token, self.stop_ids), 0, nll)[:, None]], 1)
        self.tokens = torch.cat([self.tokens, token[:, None]], 1)
        self.seen[torch.arange(len(token), device=z.device), token] = True

    def _keep(self, nodes: Tensor) -> None:
        for name in ("tree", "low", "high", "slots", "tokens", "nll", "seen"):
            setattr(self, name, getattr(self, name)[nodes])

    def _close(self, nodes: Tensor, *, complete: bool, stopped: bool = False) -> None:
        """Write nodes down as segments and drop them."""
        if not nodes.any():
            return
        ids = [row[: len(row) - stopped] for row in self.tokens[nodes].tolist()]
        columns = (side[nodes].tolist() for side in (self.tree, self.low, self.high, self.nll))
        for tree, low, high, nll, token_ids in zip(*columns, ids, strict=True):
            request = self.requests[tree]
            text, thoughts = with_thoughts(self.frozen, request.branches["base"].ids, token_ids)
            row = {"arm_id": request.arm_id, "prompt_id": request.prompt_id, "seed": request.seed}
            row |= {"alpha_low": low, "alpha_high": high, "complete": complete, "text": text}
            row |= {"token_ids": token_ids, "n_tokens": len(token_ids) - thoughts}
            row |= {"stopped": stopped, "nll_base": sum(nll[thoughts:])}
            self.segments.append((tree, row))
        self._keep(~nodes)
