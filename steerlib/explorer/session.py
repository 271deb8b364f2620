"""The alpha explorer without its widgets: answers over alpha, decoded in stages and kept."""

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch

from steerlib.decoding import Sampling, alpha_path, decode, make_arms
from steerlib.decoding.alpha_path import ROW_BUDGET
from steerlib.decoding.requests import make_requests
from steerlib.decoding.steer import COLLAPSE_RATIO
from steerlib.decoding.streams import row_bytes
from steerlib.evaluation.likelihood import forced_logits, read_streams
from steerlib.explorer.questions import Answers, Question
from steerlib.models import FrozenModel
from steerlib.reading import after_thinking
from steerlib.residual import VectorFamily, in_unit
from steerlib.rules import RULES, acting_on
from steerlib.toxicity import Scorer

STEP = 0.01  # of the slider along a path
BESIDE = 9  # alphas of a logit rule with a vector beside it, which has no path
TOPS = 3  # candidates shown of each branch at a token
FORCED = 256  # tokens of answers that are read again at a time
READ_AGAIN = 50_000  # tokens of contexts; with more, no probabilities of tokens are shown
COLUMNS = ["method", "alpha_low", "alpha_high", "text", "token_ids", "n_tokens", "stopped", "complete"]
Report = Callable[[int, int, str], object]


class Estimate(NamedTuple):
    """What a question is about to cost: bytes beside the model, those free now, and seconds."""

    needed: int
    free: int
    seconds: float


class Explorer:
    """All answers over alpha to a prompt: exact for the logit rules, on a grid for the rest.

    `sampling` is greedy or has top_p = 1 (min_p is the nucleus of a path), `style` is "chat" or "continuation".
    `alpha_max` ends the path of the logit rules, dimensionless; `residual_alphas` of the vectors increase from 0.
    A ValueError says that a vector does not fit the model, or the alphas do not increase.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        scorer: Scorer,
        *,
        sampling: Sampling,
        style: str = "continuation",
        vectors: Sequence[VectorFamily] = (),
        alpha_max: float = 2.2,
        residual_alphas: Sequence[float] = (0.0, 0.25, 0.5, 1.0),
    ) -> None:
        self.frozen, self.scorer, self.style, self.sampling = frozen, scorer, style, sampling
        self.vectors = {f"{one.vector_user} {one.name}".strip(): one for one in vectors}
        self.alpha_max, self.residual_alphas = float(alpha_max), tuple(map(float, residual_alphas))
        if list(residual_alphas) != sorted({0.0, *residual_alphas}) or len(residual_alphas) < 2:
            raise ValueError(f"residual_alphas must increase from 0, not {list(residual_alphas)}")
        for layer, vector in (
            pair for one in vectors for own in one.vectors.values() for pair in own.items()
        ):
            if layer >= frozen.n_layers or len(vector) != frozen.d_model:
                raise ValueError(
                    f"a vector of the run is {len(vector)} wide at layer {layer}, but {frozen.name} is {frozen.d_model}"
                    f" wide and has {frozen.n_layers} layers: name a run of this model"
                )
        plain = [name for name in acting_on("context", "logits") if RULES[name].branches]
        self.methods = (*plain, *(acting_on("residual") if self.vectors else ()))
        self._kept: dict[Question, Answers] = {}
        self._bases: dict[Question, pd.DataFrame] = {}
        self._one_at_a_time, self._flops = threading.RLock(), 0.0

    def grid(self, question: Question) -> tuple[float, ...]:
        """Alphas that are decoded where there is no path; a context alone is off at 0 and on at 1."""
        if RULES[question.method].acts_on == "logits":
            return tuple(np.linspace(0, self.alpha_max, BESIDE).round(3))
        return self.residual_alphas if RULES[question.method].acts_on == "residual" else (0.0, 1.0)

    def reach(self, question: Question) -> tuple[float, float]:
        """Largest alpha, and the step that a slider takes."""
        grid = self.grid(question)
        return (self.alpha_max, STEP) if question.exact else (grid[-1], min(b - a for a, b in pairwise(grid)))

    def estimate(self, question: Question) -> Estimate:
        """Memory of all rows; time of two operations a weight and token, at the speed of one matrix product here.

        A ValueError names an empty or too long prompt.
        """
        alphas = [self.alpha_max] if question.exact else self.grid(question)[1:]
        requests = self._run(make_requests, question, alphas)
        streams = {stream for request in requests for stream in request.branches.values()}
        rows, device = ROW_BUDGET if question.exact else len(streams), self.frozen.device
        on_gpu = device.type == "cuda"
        free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
        if not self._flops:
            square = torch.ones(1024, 1024, dtype=self.frozen.dtype, device=device)
            started = time.perf_counter()
            (square @ square).sum().item()
            self._flops = 2 * 1024**3 / (time.perf_counter() - started)
        tokens = sum(len(stream.ids) for stream in streams) + question.max_new_tokens * (rows / 4 + 8)
        weights = sum(parameter.numel() for parameter in self.frozen.model.parameters())
        return Estimate(rows * row_bytes([self.frozen], requests), free, 2 * weights * tokens / self._flops)

    def answers(self, question: Question, *, report: Report | None = None) -> Answers:
        """All answers; a second call with the same question is free. Arguments and errors as `stages`."""
        found = [*self.stages(question, report=report)][-1]
        time.sleep(0.01)  # locks are not fair: whoever waits, a person for instance, comes next
        return found

    def stages(
        self, question: Question, *, alpha: float | None = None, report: Report | None = None
    ) -> Generator[Answers]:
        """The base's answer, that at one alpha, all of them, and all with their tokens' probabilities.

        Args:
            alpha: whose answer comes second, where the answers are a path; None for none.
            report: called before every module of the model runs, with the forward passes so far, about how many there
                will be, and the text of a single answer that is being decoded. What it raises stops the decoding.

        Raises:
            MemoryError: more is needed than is free; before anything is decoded. ValueError: as `estimate`.
        """
        key = question.key
        if key in self._kept:
            yield replace(self._kept[key], question=question)
            return
        with self._one_at_a_time:
            estimate = self.estimate(question)
            if estimate.needed > estimate.free:
                raise MemoryError(
                    f"this needs about {estimate.needed / 1e9:.1f} GB and {estimate.seconds:.0f} s, but the machine has"
                    f" {estimate.free / 1e9:.1f} GB free: shorten the prompt or the answer"
                )
            exact, of_base = question.exact, question.of_base
            most = question.max_new_tokens * (
                1 + (exact and alpha is not None) + (of_base not in self._bases)
            )
            with _watched(self.frozen, most, report):
                if of_base not in self._bases:
                    self._bases[of_base] = self._decoded(of_base, [0.0])
                base = self._bases[of_base]
                parts = [base.assign(alpha_low=np.nan, alpha_high=np.nan)]
                yield self._measured(question, parts)
                if exact and alpha is not None:
                    yield self._measured(question, [*parts, self._decoded(question, [alpha])])
                if exact:
                    path = self._run(alpha_path, question, [self.alpha_max])
                    parts.append(path.assign(method=question.method, kl_to_base=np.nan))
                elif question.vector_alpha:
                    parts.append(self._decoded(question, self.grid(question)))
                else:  # the base's answer is the method's at 0
                    parts.append(base.assign(method=question.method))
                    parts.append(self._decoded(question, self.grid(question)[1:]))
                found = self._measured(question, parts, exact=exact)
                yield found
                self._kept[key] = self._with_tokens(found)
                yield self._kept[key]

    def _family(self, question: Question) -> list[VectorFamily]:
        """The vector that steers: of its user, in its unit, at the layers asked for; none where none does."""
        if not question.by_vector:
            return []
        vectors = self.vectors[question.vector].of(question.user)
        low, high = question.layers or (0, self.frozen.n_layers)
        chosen = {layer: vector for layer, vector in vectors.items() if low <= layer <= high}
        if not chosen:
            raise ValueError(f"vector {question.vector!r}: layers {sorted(vectors)}, none in {low}..{high}")
        own = in_unit(self.frozen, chosen, question.unit)
        return [VectorFamily(self.vectors[question.vector].name, {"": own}, unit=question.unit)]

    def _run(self, engine: Callable, question: Question, alphas: Sequence[float], **rest: Any) -> Any:
        """What `decode`, `alpha_path` or `make_requests` gives for a question."""
        temperature = 0.0 if question.greedy else self.sampling.temperature
        sampling = replace(self.sampling, max_new_tokens=question.max_new_tokens, temperature=temperature)
        how: dict[str, Any] = {"style": self.style, "sampling": sampling}
        if RULES[question.method].context_branches:
            how |= {"profile": "population", "category": question.category}
        families = self._family(question)
        if families:
            how |= {"family": families[0], "vector_alpha": question.vector_alpha}
        prompt = pd.DataFrame([vars(question)])[["prompt", "prompt_id", "history"]]
        arms = make_arms(question.method, alphas, **how)
        return engine(self.frozen, prompt, arms, seeds=[question.seed], vectors=families, **rest)

    def _decoded(self, question: Question, alphas: Sequence[float]) -> pd.DataFrame:
        rows = self._run(decode, question, alphas)
        return rows.assign(complete=True, method=question.method, alpha_low=alphas, alpha_high=alphas)

    def _measured(self, question: Question, parts: Sequence[pd.DataFrame], *, exact: bool = False) -> Answers:
        rows = pd.concat(parts, ignore_index=True)
        nll = rows["nll_base"] / rows["n_tokens"].where(rows["n_tokens"] > 0)
        ratio = np.exp(nll - nll.iloc[0])
        numbers = rows.reindex(columns=COLUMNS).assign(
            nll_per_token=nll,
            perplexity_ratio=ratio,
            collapsed=~(ratio <= COLLAPSE_RATIO) & rows["complete"].astype(bool),
            kl_per_token=rows["kl_to_base"] / (rows["n_tokens"] + rows["stopped"]),
        )
        scores = self.scorer([*map(after_thinking, rows["text"])]).reset_index(drop=True)
        return Answers(question, pd.concat([numbers, scores], axis=1), exact)

    @torch.inference_mode()
    def _with_tokens(self, answers: Answers) -> Answers:
        """Read all answers again, each under every branch: probabilities of their tokens, likeliest others, KL."""
        question, table = answers.question, answers.table.copy()
        middles = ((table["alpha_low"] + table["alpha_high"]) / 2).iloc[1:]
        requests = self._run(make_requests, question.of_base, [0.0])
        if answers.exact:
            (of_path,) = self._run(make_requests, question, [self.alpha_max])
            requests += [replace(of_path, alpha=alpha) for alpha in middles]
        else:
            requests += self._run(make_requests, question, middles)
        if sum(len(stream.ids) for one in requests for stream in one.branches.values()) > READ_AGAIN:
            return answers
        families = self._family(question)
        tokens: list[list[dict]] = []
        counts = table["n_tokens"].clip(lower=1).cumsum() // FORCED
        for _, rows in table.groupby(counts):
            read = {i: tuple(ids) for i, ids in rows["token_ids"].items()}
            base = requests[0].branches["base"]
            texts = [(s, ids) for i, ids in read.items() for s in (base, *read_streams(requests[i]).values())]
            z = dict(forced_logits({"": self.frozen}, [text for text in texts if text[1]], families))
            for i, ids in read.items():
                if not ids:
                    tokens.append([])
                    continue
                own = {name: z[one, ids] for name, one in read_streams(requests[i]).items()}
                log_p = {name: one.log_softmax(-1) for name, one in (own | {"base": z[base, ids]}).items()}
                if i:
                    alphas = own["base"].new_full((len(ids),), requests[i].alpha)
                    steered = log_p["steered"] = RULES[requests[i].method].steer(own, alphas).log_softmax(-1)
                    kl = (steered.exp() * (steered - log_p["base"])).nan_to_num(0.0).sum(-1)
                    if answers.exact:  # thoughts come first, and do not count
                        kl = kl[len(ids) - table["n_tokens"][i] :].mean()
                        table.loc[i, "kl_per_token"] = max(0.0, kl.item())
                tokens.append(self._tokens([*ids], log_p))
        return replace(answers, table=table, tokens=tuple(tokens))

    def _tokens(self, ids: list[int], log_p: dict[str, torch.Tensor]) -> list[dict]:
        """What is said of each token of an answer, see `Answers.tokens`."""
        tokenizer: Any = self.frozen.tokenizer
        heads = [tokenizer.decode(ids[:n], skip_special_tokens=True) for n in range(len(ids) + 1)]
        starts = pairwise(map(len, heads))
        found: list[dict] = [{"text": heads[-1][start:stop], "tops": []} for start, stop in starts]
        for name, logs in log_p.items():
            best = logs.topk(TOPS)
            words = iter(tokenizer.batch_decode(best.indices.reshape(-1, 1)))
            for token, chosen, ps, log in zip(found, ids, best.values.exp().tolist(), logs, strict=True):
                if name in ("base", "steered"):
                    token[name] = log[chosen].exp().item()
                token["tops"].append((name, [(next(words), round(p, 4)) for p in ps]))
        return found


@contextmanager
def _watched(frozen: FrozenModel, most: int, report: Report | None) -> Generator[None]:
    """Call `report` before every module of the model: a forward pass of a long prompt alone may take minutes.

    Where all rows of a pass go on with the same token, one answer is being decoded: its text so far is reported too.
    """
    done, ids, text = 0, [], ""
    tokenizer: Any = frozen.tokenizer

    def count(_: object, __: object, inputs: dict[str, Any]) -> None:
        nonlocal done, text
        read, done = inputs["input_ids"], done + 1
        if read.shape[1] > 1 or len(read) > 3 or (read != read[0]).any():
            ids.clear()
        else:
            ids.append(int(read[0, 0]))
        text = tokenizer.decode(ids, skip_special_tokens=True) if ids else ""

    def tell(*_: object) -> None:
        if report:
            report(min(done, most), most, text)

    hooks = [frozen.model.register_forward_pre_hook(count, with_kwargs=True)]
    leaves = [module for module in frozen.model.modules() if not any(module.children())]
    hooks += [module.register_forward_pre_hook(tell) for module in leaves]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
