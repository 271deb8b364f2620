"""Decoding a grid of arms as one batch: branches in step, one rule a row, one stack of sampling for all.

Every branch of every answer is a row of one forward pass with a KV cache. Answers that agree so far share
their rows (neighbouring alphas with the same noise often do), so a grid costs less than its size.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor

from steerlib.generation.contexts import Contexts
from steerlib.generation.requests import Request, make_requests
from steerlib.generation.rules import RULES
from steerlib.generation.sampling import NEAR_TIE, choose, gumbel_noise, penalise_, text_hash
from steerlib.generation.streams import Stream, Streams
from steerlib.models import FrozenModel
from steerlib.vectors.residual import ResidualDose, Vectors, residual_hooks

Progress = Callable[[int], None]
CPU_CAPACITY = 384


def decode(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    seeds: Sequence[int] = (0,),
    contexts: Contexts | None = None,
    vectors: Mapping[str, Vectors] | None = None,
    capacity: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Answers of every prompt under every arm and seed.

    Raw branch logits are combined first; then every arm goes through repetition penalty, temperature, nucleus and
    choice. The noise depends on (seed, prompt, step, token) alone, so arms are paired, and alpha = 0 gives the base
    arm's answer token for token.

    Args:
        frozen: the model.
        prompts: the prompts table, or any frame with prompt_id, prompt and, for logit rules, category.
        arms: the arms table, see `make_arms`.
        seeds: of the noise.
        contexts: expert and anti-expert contexts by category; None for the defaults of each arm's style.
        vectors: steering vectors by name, `{layer: (d_model,)}` each.
        capacity: rows of the forward pass at most; by default what fits the free memory.
        progress: called with the number of answers finished since its last call.

    Returns:
        The generations table: `nll_base` is the answer's summed negative log-likelihood under the unsteered base
        in nats, `kl_to_base` the summed KL(steered || base) of its steps in nats (both before penalty and
        temperature), `near_ties` the steps whose two best scores were closer than 1e-3.

    Raises:
        ValueError: an empty or too long prompt, an unknown vector, bad settings; before anything is decoded.
    """
    vectors = vectors or {}
    requests = make_requests(frozen, prompts, arms, seeds=seeds, contexts=contexts)
    _check_vectors(requests, vectors)
    return decode_requests(frozen, requests, vectors=vectors, capacity=capacity, progress=progress)


def decode_requests(
    frozen: FrozenModel,
    requests: Sequence[Request],
    *,
    vectors: Mapping[str, Vectors],
    capacity: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """`decode` for answers already asked for; a batch that does not fit the memory is halved and taken up again."""
    capacity = capacity or default_capacity(frozen, requests)
    pending = list(_batches(requests, capacity))
    found: list[dict] = []
    while pending:
        batch, *pending = pending
        try:
            with _hooks(frozen, vectors) as dose, torch.inference_mode():
                found += _Batch(frozen, batch, list(vectors), dose).run(progress or (lambda n: None))  # noqa: ARG005
        except (torch.OutOfMemoryError, MemoryError):
            if len(batch) == 1:
                raise
            half = len(batch) // 2
            pending = [batch[:half], batch[half:], *pending]
    return pd.DataFrame(found)


def default_capacity(frozen: FrozenModel, requests: Sequence[Request]) -> int:
    """Rows of a forward pass that half of the free GPU memory holds; on a CPU a fixed number."""
    if frozen.device.type != "cuda":
        return CPU_CAPACITY
    config = frozen.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or frozen.d_model // config.num_attention_heads
    longest = max(len(s.ids) + r.sampling.max_new_tokens for r in requests for s in r.branches.values())
    cache = 2 * frozen.n_layers * heads * width * longest * frozen.dtype.itemsize
    logits = 6 * 4 * config.vocab_size
    free = torch.cuda.mem_get_info(frozen.device)[0]
    return max(8, int(free / 2 // (cache + logits)))


def _check_vectors(requests: Sequence[Request], vectors: Mapping[str, Vectors]) -> None:
    for name in {s.vector for r in requests for s in r.branches.values()} - {""}:
        if name not in vectors:
            raise ValueError(
                f"no steering vector is called {name!r}; there are {', '.join(vectors) or 'none'}"
            )


def _batches(requests: Sequence[Request], capacity: int) -> Iterator[list[Request]]:
    """Runs of requests whose streams fit even if every answer goes its own way."""
    batch: list[Request] = []
    rows = 0
    for request in requests:
        if batch and rows + len(request.branches) > capacity:
            yield batch
            batch, rows = [], 0
        batch.append(request)
        rows += len(request.branches)
    if batch:
        yield batch


@contextmanager
def _hooks(frozen: FrozenModel, vectors: Mapping[str, Vectors]) -> Iterator[ResidualDose]:
    """Residual hooks for several vectors at once; a vector without a layer adds nothing there."""
    layers = sorted({layer for vector in vectors.values() for layer in vector})
    nothing = torch.zeros(frozen.d_model)
    directions = {
        layer: torch.stack([v.get(layer, nothing) for v in vectors.values()]).to(frozen.device)
        for layer in layers
    }
    with residual_hooks(frozen.model, directions) as dose:
        yield dose


class _Batch:
    """The answers of one batch while they are written, one row each."""

    def __init__(
        self, frozen: FrozenModel, requests: Sequence[Request], vectors: Sequence[str], dose: ResidualDose
    ) -> None:
        self.frozen, self.requests, self.device = frozen, requests, frozen.device
        self.names = sorted({name for r in requests for name in r.branches})
        distinct: dict[Stream, int] = {s: 0 for r in requests for s in r.branches.values()}
        # Alike lengths lie side by side, so that prefill pads little.
        ordered = sorted(distinct, key=lambda s: (len(s.ids), s.ids, s.vector, s.alpha))
        index = {stream: i for i, stream in enumerate(ordered)}
        slots = [[index[r.branches[n]] if n in r.branches else -1 for n in self.names] for r in requests]
        self.slots = torch.tensor(slots, device=self.device)
        self.longest = max(r.sampling.max_new_tokens for r in requests)
        self.streams = Streams(
            frozen,
            ordered,
            capacity=sum(len(r.branches) for r in requests),
            max_new_tokens=self.longest,
            vectors=vectors,
            dose=dose,
        )
        self._settings()
        self._records()

    def _settings(self) -> None:
        rows = self.requests
        self.alpha = self._column([r.alpha for r in rows])
        self.temperature = self._column([r.sampling.temperature for r in rows])
        self.top_p = self._column([r.sampling.top_p for r in rows])
        self.min_p = self._column([r.sampling.min_p for r in rows])
        self.penalty = self._column([r.sampling.repetition_penalty for r in rows])
        self.budget = torch.tensor([r.sampling.max_new_tokens for r in rows], device=self.device)
        dice = [(text_hash(r.prompt_id), r.seed) for r in rows]
        self.dice = list(dict.fromkeys(dice))
        self.die = torch.tensor([self.dice.index(d) for d in dice], device=self.device)
        methods = sorted({r.method for r in rows})
        self.members = {m: torch.tensor([r.method == m for r in rows], device=self.device) for m in methods}

    def _records(self) -> None:
        n = len(self.requests)
        self.high = torch.float32 if self.device.type == "mps" else torch.float64
        self.live = torch.arange(n, device=self.device)
        self.tokens = torch.zeros(n, self.longest, dtype=torch.long, device=self.device)
        self.n_tokens = torch.zeros(n, dtype=torch.long, device=self.device)
        self.stopped = torch.zeros(n, dtype=torch.bool, device=self.device)
        self.near_ties = torch.zeros(n, dtype=torch.long, device=self.device)
        self.nll = torch.zeros(n, dtype=self.high, device=self.device)
        self.kl = torch.zeros(n, dtype=self.high, device=self.device)
        self.stop_ids = torch.tensor(sorted(self.frozen.stop_ids), device=self.device)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.promote_types(self.frozen.dtype, torch.float32)).to(
            self.device
        )

    def run(self, progress: Progress) -> list[dict]:
        """Decode to the end of every answer; rows of the generations table."""
        z = self.streams.prefill()
        self.seen = self._prompt_tokens(z.shape[1])
        for step in range(self.longest):
            tokens = self._step(z, step)
            running = self._record(tokens, step)
            progress(int((~running).sum()))
            self.live, tokens = self.live[running], tokens[running]
            if not len(self.live):
                break
            z = self._continue(tokens)
        return self._rows()

    def _prompt_tokens(self, vocab: int) -> Tensor:
        seen = torch.zeros(len(self.requests), vocab, dtype=torch.bool, device=self.device)
        for row, request in enumerate(self.requests):
            if request.sampling.penalty_scope == "prompt_and_generated":
                seen[row, list(request.branches["base"].ids)] = True
        return seen

    def _step(self, z: Tensor, step: int) -> Tensor:
        """Combine, penalise, draw; the chosen token of each live row."""
        live = self.live
        z_new = self._combined(z)
        hashes, seeds = torch.tensor(self.dice, device=self.device).unbind(-1)
        dice = gumbel_noise(hashes, seeds, step, z.shape[1], dtype=z.dtype)
        log_norm, kl = self._divergence(z, z_new)
        penalise_(z_new, self.seen[live], self.penalty[live])
        tokens, gap = choose(
            z_new, dice[self.die[live]], self.temperature[live], self.top_p[live], self.min_p[live]
        )
        self.near_ties[live] += gap < NEAR_TIE
        nll = log_norm - z[self._base(), tokens]
        self.nll[live] += torch.where(torch.isin(tokens, self.stop_ids), 0, nll)
        self.kl[live] += kl
        return tokens

    def _base(self) -> Tensor:
        return self.slots[self.live, self.names.index("base")]

    def _combined(self, z: Tensor) -> Tensor:
        z_new = torch.empty(len(self.live), z.shape[1], dtype=z.dtype, device=self.device)
        for method, members in self.members.items():
            rows = members[self.live].nonzero()[:, 0]
            if len(rows):
                slots = self.slots[self.live[rows]]
                branches = {
                    name: z[slots[:, self.names.index(name)]] for name in ("base", *RULES[method].branches)
                }
                z_new[rows] = RULES[method].combine(branches, self.alpha[self.live[rows]])
        return z_new

    def _divergence(self, z: Tensor, z_new: Tensor) -> tuple[Tensor, Tensor]:
        """Log normaliser of each row's base, and KL(steered || base), before penalty and temperature."""
        base = self._base()
        log_norm = z.logsumexp(-1)[base]
        steered = (self.slots[self.live] >= 0).sum(-1) > 1
        z_steered = z_new[steered]
        new_norm = z_steered.logsumexp(-1)
        difference = z_steered - z[base[steered]]
        weighted = z_steered.sub_(new_norm[:, None]).exp_().mul_(difference).sum(-1)
        kl = torch.zeros_like(log_norm)
        kl[steered] = (weighted - new_norm + log_norm[steered]).clamp_min(0)
        return log_norm, kl

    def _record(self, tokens: Tensor, step: int) -> Tensor:
        """Write the tokens down; which live rows go on."""
        ended = torch.isin(tokens, self.stop_ids)
        self.tokens[self.live, step] = tokens
        self.n_tokens[self.live] += (~ended).long()
        self.stopped[self.live] = ended
        self.seen[self.live, tokens] = True
        return ~ended & (step + 1 < self.budget[self.live])

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
        return z

    def _rows(self) -> list[dict]:
        tokens, counts = self.tokens.tolist(), self.n_tokens.tolist()
        ids = [row[:n] for row, n in zip(tokens, counts, strict=True)]
        texts = self.frozen.tokenizer.batch_decode(ids, skip_special_tokens=True)
        stopped, ties = self.stopped.tolist(), self.near_ties.tolist()
        return [
            {
                "arm_id": request.arm_id,
                "prompt_id": request.prompt_id,
                "seed": request.seed,
                "text": texts[i],
                "token_ids": ids[i],
                "n_tokens": counts[i],
                "stopped": stopped[i],
                "nll_base": float(self.nll[i]),
                "kl_to_base": float(self.kl[i]),
                "near_ties": ties[i],
                "hardware": self.frozen.hardware,
            }
            for i, request in enumerate(self.requests)
        ]
