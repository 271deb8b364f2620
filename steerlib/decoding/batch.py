"""The answers of one batch while they are written: combine the branches, draw, record, continue.

What is written down at every step of a batch, and the answers that come of it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steerlib.decoding.requests import Request
from steerlib.decoding.sampling import NEAR_TIE, choose, gumbel_noise, penalise_, text_hash
from steerlib.decoding.streams import open_streams
from steerlib.models import FrozenModel
from steerlib.residual import ResidualDose, VectorKey
from steerlib.rules import RULES, base_nucleus, falling_temperature, js_divergence


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


Progress = Callable[[int], None]


@dataclass(frozen=True)
class Layout:
    """The kinds of the live answers of a batch, and where their logits stand.

    Attributes:
        groups: live rows of each method.
        base: logit row of each live row's base.
        distinct, place: the different ones among those, and which of them each live row has.
        steered: live rows with more branches than the base.
        limited: live rows that are cut to the base's nucleus.
        divergent: live rows whose temperature falls with the divergence.
    """

    groups: dict[str, Tensor]
    base: Tensor
    distinct: Tensor
    place: Tensor
    steered: Tensor
    limited: Tensor
    divergent: Tensor


class Batch:
    """Answers as rows, one each, with their branches as rows of the streams.

    Args:
        models: the frozen model under "", trained branches by name.
        requests: the answers.
        vectors: the steering vectors, in the order of `dose`'s last dimension.
        dose: what the residual hooks of the frozen model add.
        reference: keep the unsteered base beside every answer, for `nll_base` and `kl_to_base`.
    """

    def __init__(
        self,
        models: Mapping[str, FrozenModel],
        requests: Sequence[Request],
        vectors: Sequence[VectorKey],
        dose: ResidualDose,
        *,
        reference: bool = True,
    ) -> None:
        self.frozen, self.requests, self.reference = models[""], requests, reference
        self.device = self.frozen.device
        self.names = sorted({name for r in requests for name in r.branches})
        self.longest = max(r.sampling.max_new_tokens for r in requests)
        self.streams, index = open_streams(
            models, requests, rows_per_request=1, max_new_tokens=self.longest, vectors=vectors, dose=dose
        )
        slots = [[index[r.branches[n]] if n in r.branches else -1 for n in self.names] for r in requests]
        self.slots = torch.tensor(slots, device=self.device)
        self._settings()
        self.live = torch.arange(len(requests), device=self.device)
        self.records = Records(len(requests), self.longest, self.device)
        self.stop_ids = torch.tensor(sorted(self.frozen.stop_ids), device=self.device)

    def _settings(self) -> None:
        rows = self.requests
        self.alpha = self._column([r.alpha for r in rows])
        self.temperature = self._column([r.sampling.temperature for r in rows])
        self.top_p = self._column([r.sampling.top_p for r in rows])
        self.min_p = self._column([r.sampling.min_p for r in rows])
        self.base_top_p = self._column([r.base_top_p for r in rows])
        self.limited = any(r.base_top_p < 1 for r in rows)
        self.sampled = any(r.sampling.temperature for r in rows)
        self.nucleus = any(r.sampling.temperature and r.sampling.top_p < 1 for r in rows)
        self.floor = any(r.sampling.temperature and r.sampling.min_p for r in rows)
        self.penalty = self._column([r.sampling.repetition_penalty for r in rows])
        self.budget = torch.tensor([r.sampling.max_new_tokens for r in rows], device=self.device)
        dice = [(text_hash(r.prompt_id), r.seed) for r in rows]
        distinct = list(dict.fromkeys(dice))
        self.dice = torch.tensor(distinct, device=self.device)
        self.die = torch.tensor([distinct.index(d) for d in dice], device=self.device)
        methods = sorted({r.method for r in rows})
        self.members = {m: torch.tensor([r.method == m for r in rows], device=self.device) for m in methods}
        plain = [self.names.index("steered" if "steered" in r.branches else "base") for r in rows]
        self.plain = torch.tensor(plain, device=self.device)
        self.js_sigma = self._column([r.sampling.js_sigma for r in rows])
        self.min_temperature = self._column([r.sampling.min_temperature for r in rows])
        self.divergent = any(r.sampling.js_sigma for r in rows)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.promote_types(self.frozen.dtype, torch.float32)).to(
            self.device
        )

    def run(self, progress: Progress) -> list[dict]:
        """Decode to the end of every answer; rows of the generations table."""
        z = self._opened()
        for step in range(self.longest):
            tokens = self._step(z, step)
            running = ~torch.isin(tokens, self.stop_ids) & (step + 1 < self.budget[self.live])
            progress(int((~running).sum()))
            self.live, tokens = self.live[running], tokens[running]
            if not len(self.live):
                break
            z = self._continue(tokens)
        return self.records.rows(self.frozen, self.requests, self.budget)

    def _opened(self) -> Tensor:
        """Read the contexts; logits of their streams."""
        z = self.streams.prefill()
        self.seen = self._prompt_tokens(z.shape[1])
        if not self.reference:
            self._drop_reference()
        self.layout = self._layout()
        return z

    def _drop_reference(self) -> None:
        """End the base's streams of answers whose rule does not read them; what they are for stays unknown."""
        unread = [RULES[r.method].acts_on == "residual" for r in self.requests]
        self.slots[torch.tensor(unread, device=self.device), self.names.index("base")] = -1
        self.records.unmeasured()

    def _prompt_tokens(self, vocab: int) -> Tensor:
        seen = torch.zeros(len(self.requests), vocab, dtype=torch.bool, device=self.device)
        for row, request in enumerate(self.requests):
            if request.sampling.penalty_scope == "prompt_and_generated":
                seen[row, list(request.branches["base"].ids)] = True
        return seen

    def _layout(self) -> Layout:
        """Which live answers are of which kind, and where their logits stand; it holds until some end or part."""
        live, slots = self.live, self.slots[self.live]
        groups = {m: self._those(members[live]) for m, members in self.members.items()}
        base = slots[:, self.names.index("base")]
        distinct, place = base.unique(return_inverse=True)
        return Layout(
            groups={method: rows for method, rows in groups.items() if len(rows)},
            base=base,
            distinct=distinct,
            place=place,
            steered=self._those((slots >= 0).sum(-1) > 1),
            limited=self._those(self.base_top_p[live] < 1),
            divergent=self._those(self.js_sigma[live] > 0),
        )

    def _those(self, rows: Tensor) -> Tensor:
        return rows.nonzero()[:, 0]

    def _step(self, z: Tensor, step: int | Tensor) -> Tensor:
        """Combine, penalise, draw, write down; the chosen token of each live row."""
        live = self.live
        z_new = self._within_nucleus(z, self._combined(z))
        measured = self._divergence(z, z_new) if self.reference else None
        penalise_(z_new, self.seen[live], self.penalty[live])
        tokens, gap = choose(
            z_new,
            self._noise(z, step),
            self._temperature(z),
            self.top_p[live] if self.nucleus else None,
            self.min_p[live] if self.floor else None,
        )
        self.records.write(live, step, tokens=tokens, gap=gap)
        if measured is not None:
            log_norm, kl = measured
            self.records.write(live, step, nll=log_norm - z[self.layout.base, tokens], kl=kl)
        self.seen[live, tokens] = torch.ones_like(live, dtype=torch.bool)
        return tokens

    def _noise(self, z: Tensor, step: int | Tensor) -> Tensor | None:
        """Gumbel noise of each live row; None where all are greedy."""
        if not self.sampled:
            return None
        hashes, seeds = self.dice.unbind(-1)
        return gumbel_noise(hashes, seeds, step, z.shape[1], dtype=z.dtype)[self.die[self.live]]

    def _branches(self, z: Tensor, rows: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Logits of some branches of some answers; a vector beside the rule steers its base as well."""
        found = {name: z[self.slots[rows, self.names.index(name)]] for name in names}
        return found | {"base": z[self.slots[rows, self.plain[rows]]]}

    def _combined(self, z: Tensor) -> Tensor:
        z_new = torch.empty(len(self.live), z.shape[1], dtype=z.dtype, device=self.device)
        for method, mine in self.layout.groups.items():
            rows = self.live[mine]
            branches = self._branches(z, rows, RULES[method].branches)
            z_new[mine] = RULES[method].steer(branches, self.alpha[rows])
        return z_new

    def _temperature(self, z: Tensor) -> Tensor:
        """Temperature of each live row, lower where the instructed branch leaves the plain one."""
        temperature = self.temperature[self.live]
        if self.divergent:
            mine = self.layout.divergent
            rows = self.live[mine]
            branches = self._branches(z, rows, ("instructed",))
            js = js_divergence(branches["base"], branches["instructed"])
            settings = (x[rows].to(js) for x in (self.temperature, self.js_sigma, self.min_temperature))
            temperature[mine] = falling_temperature(js, *settings).to(temperature)
        return temperature

    def _within_nucleus(self, z: Tensor, z_new: Tensor) -> Tensor:
        """Cut what lies outside the base's nucleus, in the rows that have one."""
        if self.limited:
            rows = self.layout.limited
            inside = base_nucleus(z[self.layout.base[rows]], self.base_top_p[self.live[rows]])
            z_new[rows] = z_new[rows].masked_fill_(~inside, -torch.inf)
        return z_new

    def _divergence(self, z: Tensor, z_new: Tensor) -> tuple[Tensor, Tensor]:
        """Log normaliser of each row's base, and KL(steered || base), before penalty and temperature.

        What the base's nucleus cuts has probability 0 in the steered distribution and adds nothing to the KL.
        """
        steered = self.layout.steered
        log_norm = z[self.layout.distinct].logsumexp(-1)[self.layout.place]
        z_steered = z_new[steered]
        new_norm = z_steered.logsumexp(-1)
        difference = z_steered - z[self.layout.base[steered]]
        if self.limited:
            difference.masked_fill_(z_steered.isneginf(), 0)
        weighted = z_steered.sub_(new_norm[:, None]).exp_().mul_(difference).sum(-1)
        kl = torch.zeros_like(log_norm)
        kl[steered] = (weighted - new_norm + log_norm[steered]).clamp_min(0)
        return log_norm, kl

    def _continue(self, tokens: Tensor) -> Tensor:
        """Append each row's token to its branches; rows that still agree share them."""
        slots = self.slots[self.live]
        used = slots >= 0
        vocab = self.seen.shape[1]
        pairs = slots * vocab + tokens[:, None]
        distinct, place = pairs[used].unique(return_inverse=True)
        slot, z = self.streams.advance(distinct // vocab, distinct % vocab)
        slots[used] = slot[place]
        self.slots[self.live] = slots
        self.layout = self._layout()
        return z
