"""Decoding a grid of arms as one batch: branches in step, one rule per row, one stack of sampling for all.

Every branch of every answer is a row of one forward pass with a KV cache. Answers that agree so far share
their rows (neighbouring alphas with common random numbers often do), so a grid costs less than its size.
"""

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from itertools import chain
from threading import Event
from typing import TypeVar, Unpack

import pandas as pd
import torch
from torch import Tensor

from steerlib.decoding.requests import Inputs, Request, make_requests
from steerlib.decoding.sampling import NEAR_TIE, choose, gumbel_noise, penalise_, text_hash
from steerlib.decoding.streams import MultiModelStreams, default_capacity
from steerlib.models import FrozenModel, high_precision
from steerlib.reading import with_thoughts
from steerlib.residual import ResidualDose, steering_hooks, vectors_by_key
from steerlib.rules import RULES, js_temperature

Progress = Callable[[int], object]
Result = TypeVar("Result")


def decode(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    seeds: Sequence[int] = (0,),
    reference: bool = True,
    **inputs: Unpack[Inputs],
) -> pd.DataFrame:
    """Answers of every prompt under every arm and seed.

    Raw branch logits are combined first; then every arm goes through repetition penalty, temperature, nucleus and
    choice. The noise depends on (seed, prompt, step, token) alone, so arms are paired, and alpha = 0 gives the answer
    of the rule's zero token for token (on a GPU the two are different rows of one product, equal up to near-ties).

    Prompts, arms, seeds and inputs as for `make_requests`, whose errors come before anything is decoded. Without
    `reference`, the unsteered base beside every answer, steered answers of a vector cost half the rows, and `nll_base`
    and `kl_to_base` are missing.

    In the generations table that is returned, `nll_base` is the answer's summed negative log-likelihood under the
    unsteered base in nats, `kl_to_base` the summed KL(steered || base) of its steps in nats (both before penalty and
    temperature), `near_ties` the steps whose two best scores were closer than 1e-3. Thoughts (`<think>...</think>`)
    stand in `text` and `token_ids`, and count in none of the numbers. A FloatingPointError names arm, prompt, step and
    precision where a logit is not finite.
    """
    requests = make_requests(frozen, prompts, arms, seeds=seeds, **inputs)
    return decode_requests(frozen, requests, reference=reference, **inputs)


def decode_requests(
    frozen: FrozenModel,
    requests: Sequence[Request],
    *,
    reference: bool = True,
    progress: Progress | None = None,
    **inputs: Unpack[Inputs],
) -> pd.DataFrame:
    """`decode` for answers already asked for with these inputs; `progress` is told how many have been finished.

    On a CPU each thread of torch decodes a share of the prompts: two halves side by side take two thirds of the time
    of one batch whose every operation is split in two.
    """
    models = {"": frozen, **(inputs.get("branch_models") or {})}
    prompts, threads = list(dict.fromkeys(r.prompt_id for r in requests)), torch.get_num_threads()
    n = min(threads, len(prompts)) if all(map(_can_share, models.values())) else 1
    share = {prompt: n * i // len(prompts) for i, prompt in enumerate(prompts)}
    ordered = sorted(requests, key=lambda request: share[request.prompt_id])
    # Before any thread begins: a copy made later would have the hooks of another's steering.
    of_thread = [models, *({name: _twin(one) for name, one in models.items()} for _ in range(1, n))]
    known, stop = vectors_by_key(inputs.get("vectors", ())), Event()

    def told(finished: int) -> None:
        if stop.is_set():
            raise InterruptedError("another thread failed, or was stopped")
        if progress:
            progress(finished)

    def decoded(number: int) -> pd.DataFrame:
        """The answers to one thread's share of the prompts."""
        torch.set_num_threads(1 if n > 1 else threads)  # of this thread
        mine, own = [r for r in ordered if share[r.prompt_id] == number], of_thread[number]
        capacity = max(8, default_capacity([*own.values()], mine) // n)

        def answers(batch: Sequence[Request]) -> pd.DataFrame:
            # Of a thousand users' vectors a batch has a few.
            read = {stream.vector for request in batch for stream in request.branches.values()}
            used = {key: vector for key, vector in known.items() if key in read}
            with steering_hooks(own[""].model, used) as dose, torch.inference_mode():
                return Batch(own, batch, dose, reference=reference).run(told)

        batches, rows = [], capacity
        for request in mine:
            if rows + len(request.branches) > capacity:
                batches.append([])
                rows = 0
            batches[-1].append(request)
            rows += len(request.branches)
        return pd.concat(halved(batches, answers), ignore_index=True)

    if n == 1:
        return decoded(0)
    running = [_pool(n).submit(decoded, number) for number in range(n)]
    try:
        return pd.concat([one.result() for one in running], ignore_index=True)
    except BaseException:
        stop.set()
        wait(running)
        raise
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """The same threads for every call: new ones would leave memory behind that malloc keeps for each."""
    return ThreadPoolExecutor(threads)


def _can_share(frozen: FrozenModel) -> bool:
    """Whether two threads may run the model at once: all of it in the memory of a CPU, no hooks of accelerate."""
    here = {parameter.device.type for parameter in frozen.model.parameters()} == {"cpu"}
    return here and not any(hasattr(module, "_hf_hook") for module in frozen.model.modules())


def _twin(frozen: FrozenModel) -> FrozenModel:
    """The model again with hooks of its own; weights are shared."""
    modules = list(frozen.model.modules())
    tensors = chain.from_iterable(vars(module).values() for module in modules)
    held = [*frozen.model.parameters(), *frozen.model.buffers(), *tensors]
    memo = {id(one): one for one in held if isinstance(one, Tensor)}
    return replace(frozen, model=copy.deepcopy(frozen.model, memo))


def halved(
    batches: Sequence[Sequence[Request]], work: Callable[[Sequence[Request]], Result]
) -> Iterator[Result]:
    """What `work` makes of each batch; one that does not fit the memory is halved and taken up again."""
    pending = list(batches)
    while pending:
        batch, *pending = pending
        try:
            found = work(batch)
        except (torch.OutOfMemoryError, MemoryError):
            if len(batch) == 1:
                raise
            half = len(batch) // 2
            pending = [batch[:half], batch[half:], *pending]
        else:
            yield found


def noise_keys(requests: Sequence[Request], device: torch.device) -> Tensor:
    """Hash of its prompt and seed of each answer, `(answers, 2)`: answers with the same ones share their noise."""
    return torch.tensor([(text_hash(r.prompt_id), r.seed) for r in requests], device=device)


def shared_noise(keys: Tensor, step: int, z: Tensor) -> Tensor:
    """Common random numbers of some answers, `(rows, vocab)`, in the precision of `z`; each key's are computed once."""
    distinct, place = keys.unique(dim=0, return_inverse=True)
    hashes, seeds = distinct.unbind(-1)
    return gumbel_noise(hashes, seeds, step, z.shape[1], dtype=z.dtype)[place]


def prompt_tokens(requests: Sequence[Request], vocab: int, device: torch.device) -> Tensor:
    """Tokens that the repetition penalty counts as seen before the first step, boolean `(answers, vocab)`."""
    seen = torch.zeros(len(requests), vocab, dtype=torch.bool, device=device)
    for row, request in enumerate(requests):
        if request.sampling.penalty_scope == "prompt_and_generated":
            seen[row, list(request.branches["base"].ids)] = True
    return seen


def check_finite(values: Tensor, requests: Sequence[Request], rows: Tensor, step: int, z: Tensor) -> None:
    """Stop where the value of a row, hence a logit of it, is not finite; `rows` says which request each value is of."""
    wrong = ~values.isfinite()
    if wrong.any():
        request = requests[int(rows[wrong][0])]
        raise FloatingPointError(
            f"arm {request.arm_id}, prompt {request.prompt_id}, step {step}: a logit is not finite in {z.dtype}; "
            "load the model in float32 or bfloat16, or check its weights"
        )


class Batch:
    """Answers as rows, one each, with their branches as rows of the streams (see `MultiModelStreams`)."""

    def __init__(
        self,
        models: Mapping[str, FrozenModel],
        requests: Sequence[Request],
        dose: ResidualDose,
        *,
        reference: bool,
    ) -> None:
        self.frozen, self.requests, self.reference = models[""], requests, reference
        self.device = device = self.frozen.device
        settings = [vars(r.sampling) | {"alpha": r.alpha} for r in requests]
        numbers = pd.DataFrame(settings).drop(columns="penalty_scope").astype(float)
        dtype = torch.promote_types(self.frozen.dtype, torch.float32)
        self.of = {name: torch.tensor(numbers[name].to_numpy(), dtype=dtype).to(device) for name in numbers}
        self.budget = self.of.pop("max_new_tokens").long()
        self.longest = int(self.budget.max())
        self.divergent = bool((self.of["js_sigma"] > 0).any())
        self.sampled, self.keys = bool((self.of["temperature"] > 0).any()), noise_keys(requests, device)
        self.streams = MultiModelStreams(
            models, requests, rows_per_request=1, max_new_tokens=self.longest, dose=dose
        )
        self.names = sorted({name for r in requests for name in r.branches})
        slot = self.streams.slot
        slots = [[slot.get(r.branches.get(name), -1) for name in self.names] for r in requests]
        self.slots = torch.tensor(slots, device=device)
        # The rule's base: a vector beside a logit rule steers it too.
        own_base = [self.names.index("steered" if "steered" in r.branches else "base") for r in requests]
        self.own_base = torch.tensor(own_base, device=device)
        methods = [r.method for r in requests]
        self.members = {one: torch.tensor([m == one for m in methods], device=device) for one in {*methods}}
        self.live = torch.arange(len(requests), device=device)
        self.stop_ids = torch.tensor(sorted(self.frozen.stop_ids), device=device)
        self.tokens = torch.zeros(len(requests), self.longest, dtype=torch.long, device=device)
        self.gap = torch.full(self.tokens.shape, torch.inf, device=device)
        self.nll, self.kl = (high_precision(torch.zeros_like(self.gap)) for _ in range(2))

    def run(self, progress: Progress) -> pd.DataFrame:
        """Decode to the end of every answer; the generations table."""
        z = self.streams.prefill()
        self.seen = prompt_tokens(self.requests, z.shape[1], self.device)
        if not self.reference:
            # The base of an answer whose rule does not read it ends here.
            for method, members in self.members.items():
                if RULES[method].acts_on == "residual":
                    self.slots[members, self.names.index("base")] = -1
        for step in range(self.longest):
            tokens = self._step(z, step)
            running = ~torch.isin(tokens, self.stop_ids) & (step + 1 < self.budget[self.live])
            progress(int((~running).sum()))
            self.live, tokens = self.live[running], tokens[running]
            if not len(self.live):
                break
            self.slots[self.live], z = self.streams.append(self.slots[self.live], tokens, z.shape[1])
        return self._table()

    def _step(self, z: Tensor, step: int) -> Tensor:
        """Combine, penalise, draw, write down; the chosen token of each live row."""
        live, of = self.live, {name: values[self.live] for name, values in self.of.items()}
        base = self.slots[live, self.names.index("base")]
        z_new = torch.empty(len(live), z.shape[1], dtype=z.dtype, device=self.device)
        for method, members in self.members.items():
            mine = members[live].nonzero()[:, 0]
            if len(mine):
                branches = self._branches(z, live[mine], RULES[method].branches)
                z_new[mine] = RULES[method].steer(branches, of["alpha"][mine])
        if self.reference:
            log_norm, kl = self._divergence(z, z_new, base)
        penalise_(z_new, self.seen[live], of["repetition_penalty"])
        tokens, gap = choose(
            z_new,
            shared_noise(self.keys[live], step, z) if self.sampled else None,
            self._temperature(z, of),
            of["top_p"],
            of["min_p"],
        )
        # A NaN or an infinite logit is what argmax chooses.
        check_finite(z_new.gather(1, tokens[:, None])[:, 0], self.requests, live, step, z)
        # A row is written to after its answer has ended too: nobody reads that.
        self.tokens[live, step], self.gap[live, step] = tokens, gap.to(self.gap.dtype)
        if self.reference:
            self.nll[live, step] = (log_norm - z[base, tokens]).to(self.nll)
            self.kl[live, step] = kl.to(self.kl)
        self.seen[live, tokens] = True
        return tokens

    def _branches(self, z: Tensor, rows: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Logits that the rules of some answers read, by branch."""
        found = {name: z[self.slots[rows, self.names.index(name)]] for name in names}
        return found | {"base": z[self.slots[rows, self.own_base[rows]]]}

    def _temperature(self, z: Tensor, of: Mapping[str, Tensor]) -> Tensor:
        """Temperature of each live row, lower where the instructed branch leaves the plain one."""
        temperature = of["temperature"]
        if self.divergent:
            mine = (of["js_sigma"] > 0).nonzero()[:, 0]
            z_own = self._branches(z, self.live[mine], ("instructed",))
            names = {"t0": "temperature", "sigma": "js_sigma", "t_min": "min_temperature"}
            settings = {name: of[column][mine] for name, column in names.items()}
            found = js_temperature(z_own["base"], z_own["instructed"], **settings)
            temperature[mine] = found.to(temperature)
        return temperature

    def _divergence(self, z: Tensor, z_new: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
        """Log normaliser of each row's base, and KL(steered || base), before penalty and temperature."""
        distinct, place = base.unique(return_inverse=True)
        log_norm = z[distinct].logsumexp(-1)[place]
        steered = ((self.slots[self.live] >= 0).sum(-1) > 1).nonzero()[:, 0]
        z_steered = z_new[steered]
        new_norm = z_steered.logsumexp(-1)
        difference = z_steered - z[base[steered]]
        weighted = z_steered.sub_(new_norm[:, None]).exp_().mul_(difference).sum(-1)
        kl = torch.zeros_like(log_norm)
        kl[steered] = (weighted - new_norm + log_norm[steered]).clamp_min(0)
        return log_norm, kl

    def _table(self) -> pd.DataFrame:
        steps = torch.arange(self.longest, device=self.device)
        ended = torch.isin(self.tokens, self.stop_ids) & (steps < self.budget[:, None])
        stopped = ended.any(-1)
        counts = torch.where(stopped, ended.int().argmax(-1), self.budget)
        ids = [row[:n] for row, n in zip(self.tokens.tolist(), counts.tolist(), strict=True)]
        contexts = [request.branches["base"].ids for request in self.requests]
        read = [with_thoughts(self.frozen, *one) for one in zip(contexts, ids, strict=True)]
        thoughts = torch.tensor([n for _, n in read], device=self.device)
        # The stop token itself was chosen too: it has a KL and may be a near-tie, but it is none of the answer.
        written, chosen = (
            (steps >= thoughts[:, None]) & (steps < n[:, None]) for n in (counts, counts + stopped)
        )
        unknown = 0.0 if self.reference else torch.nan
        keys = pd.DataFrame([(r.arm_id, r.prompt_id, r.seed) for r in self.requests])
        return keys.set_axis(["arm_id", "prompt_id", "seed"], axis=1).assign(
            text=[text for text, _ in read],
            token_ids=ids,
            n_tokens=(counts - thoughts).tolist(),
            stopped=stopped.tolist(),
            nll_base=(unknown + self.nll.where(written, 0).sum(-1)).tolist(),
            kl_to_base=(unknown + self.kl.where(chosen, 0).sum(-1)).tolist(),
            near_ties=((self.gap < NEAR_TIE) & chosen).sum(-1).tolist(),
            hardware=self.frozen.hardware,
        )
