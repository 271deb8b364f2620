"""Decoding a grid of arms as one batch: branches in step, one rule a row, one stack of sampling for all.

Every branch of every answer is a row of one forward pass with a KV cache. Answers that agree so far share
their rows (neighbouring alphas with the same noise often do), so a grid costs less than its size.
"""

from collections.abc import Iterator, Sequence

import pandas as pd
import torch

from steerlib.decoding.batch import Batch, Progress
from steerlib.decoding.contexts import BranchModels, Contexts
from steerlib.decoding.requests import Request, make_requests
from steerlib.models import FrozenModel
from steerlib.residual import Factor, VectorFamily, VectorKey, Vectors, steering_hooks, vectors_by_key

CPU_CAPACITY = 384


def decode(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    seeds: Sequence[int] = (0,),
    contexts: Contexts | None = None,
    vectors: Sequence[VectorFamily] = (),
    factors: Sequence[Factor] = (),
    branch_models: BranchModels | None = None,
    reference: bool = True,
    capacity: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Answers of every prompt under every arm and seed.

    Raw branch logits are combined first; then every arm goes through repetition penalty, temperature, nucleus and
    choice. The noise depends on (seed, prompt, step, token) alone, so arms are paired, and alpha = 0 gives the base
    arm's answer token for token (on a GPU the two are different rows of one product, equal up to near-ties).

    Args:
        frozen: the model.
        prompts: the prompts table, or any frame with prompt_id, prompt and, for logit rules, category.
        arms: the arms table, see `make_arms`.
        seeds: of the noise.
        contexts: texts of the branches by category; None for the defaults of each arm's style.
        vectors: families of steering vectors that arms name.
        factors: what strengths are multiplied by per prompt, that arms name.
        branch_models: trained models by branch, "expert" or "anti": a PEFT adapter (see `load_model`) or another model
            with the same vocabulary, on the same device. It reads the plain prompt where an arm names it in
            `branches`; other arms keep their contexts.
        reference: keep the unsteered base beside every answer. Without it, steered answers of a vector cost half the
            rows, and `nll_base` and `kl_to_base` are missing.
        capacity: rows of the forward pass at most; by default what fits the free memory.
        progress: called with the number of answers finished since its last call.

    Returns:
        The generations table: `nll_base` is the answer's summed negative log-likelihood under the unsteered base
        in nats, `kl_to_base` the summed KL(steered || base) of its steps in nats (both before penalty and
        temperature; steered means within the base's nucleus where the arm has `base_top_p` below 1, so that alpha = 0
        has a KL too, the base is the whole of it), `near_ties` the steps whose two best scores were closer than 1e-3.

    Raises:
        ValueError: an empty or too long prompt, an unknown vector, factor or branch model, bad settings; before
            anything is decoded.
    """
    requests = make_requests(
        frozen,
        prompts,
        arms,
        seeds=seeds,
        contexts=contexts,
        vectors=vectors,
        factors=factors,
        branch_models=branch_models,
    )
    return decode_requests(
        frozen,
        requests,
        vectors=vectors,
        branch_models=branch_models,
        reference=reference,
        capacity=capacity,
        progress=progress,
    )


def decode_requests(
    frozen: FrozenModel,
    requests: Sequence[Request],
    *,
    vectors: Sequence[VectorFamily] = (),
    branch_models: BranchModels | None = None,
    reference: bool = True,
    capacity: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """`decode` for answers already asked for; a batch that does not fit the memory is halved and taken up again."""
    models = {"": frozen, **(branch_models or {})}
    capacity = capacity or default_capacity([*models.values()], requests)
    pending = list(_batches(requests, capacity))
    found: list[dict] = []
    while pending:
        batch, *pending = pending
        try:
            used = _used(batch, vectors)
            with steering_hooks(frozen, [*used.values()]) as dose, torch.inference_mode():
                answers = Batch(models, batch, list(used), dose, reference=reference)
                found += answers.run(progress or (lambda n: None))  # noqa: ARG005
        except (torch.OutOfMemoryError, MemoryError):
            if len(batch) == 1:
                raise
            half = len(batch) // 2
            pending = [batch[:half], batch[half:], *pending]
    return pd.DataFrame(found)


def default_capacity(models: Sequence[FrozenModel], requests: Sequence[Request]) -> int:
    """Rows of a forward pass that half of the free GPU memory holds, all of the largest model; on a CPU a fixed number.

    Args:
        models: the frozen model first, then trained branches; all loaded.
        requests: the answers.
    """
    device = models[0].device
    if device.type != "cuda":
        return CPU_CAPACITY
    longest = max(len(s.ids) + r.sampling.max_new_tokens for r in requests for s in r.branches.values())
    # What torch has reserved and not given out counts as used by the driver, and is free for the next batch.
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + kept
    return max(8, int(free / 2 // max(_row_bytes(model, longest) for model in models)))


def _row_bytes(frozen: FrozenModel, tokens: int) -> int:
    """Memory of one row: its keys and values, and some copies of its logits."""
    config = frozen.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or frozen.d_model // config.num_attention_heads
    cache = 2 * frozen.n_layers * heads * width * tokens * frozen.dtype.itemsize
    return cache + 6 * 4 * config.vocab_size


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


def _used(requests: Sequence[Request], vectors: Sequence[VectorFamily]) -> dict[VectorKey, Vectors]:
    """The vectors that some answers read: of a thousand users' a batch has a few."""
    read = {stream.vector for request in requests for stream in request.branches.values()}
    return {key: vector for key, vector in vectors_by_key(vectors).items() if key in read}
