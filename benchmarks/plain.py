"""The logit rules as one would decode them without this library: one alpha at a time, one branch after another."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from steerlib.decoding import expert_anti_expert
from steerlib.decoding.requests import Request
from steerlib.models import FrozenModel
from steerlib.reading import left_padded, position_ids

Choice = Callable[[Tensor], Tensor]
"""From steered logits `(batch, vocab)` to tokens `(batch,)`."""


def greedy(z: Tensor) -> Tensor:
    """The best token."""
    return z.argmax(-1)


def nucleus_draw(z: Tensor, *, temperature: float = 0.7, top_p: float = 0.9) -> Tensor:
    """A draw from the nucleus of softmax(z/T), by sorting, as decoding scripts have it."""
    p, order = (z / temperature).softmax(-1).sort(-1, descending=True)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)
    return order.gather(-1, p.multinomial(1))[:, 0]


@torch.inference_mode()
def full_prefix_loop(frozen: FrozenModel, request: Request, choice: Choice = greedy) -> list[int]:
    """One answer as the DExperts release decodes it: every branch reads the whole prefix for every token."""
    answer: list[int] = []
    for _ in range(request.sampling.max_new_tokens):
        z = {
            name: frozen.model(torch.tensor([[*stream.ids, *answer]], device=frozen.device)).logits[:, -1]
            for name, stream in request.branches.items()
        }
        token = int(choice(_combined(z, [request])))
        if token in frozen.stop_ids:
            break
        answer.append(token)
    return answer


def cached_loop(frozen: FrozenModel, request: Request, choice: Choice = greedy) -> list[int]:
    """One answer with a KV cache for each branch."""
    return cached_batch(frozen, [request], choice)[0]


@torch.inference_mode()
def cached_batch(
    frozen: FrozenModel, requests: Sequence[Request], choice: Choice = greedy
) -> list[list[int]]:
    """Answers at one alpha to several prompts as one padded batch, with a KV cache for each branch.

    As in `generate`, a finished row stays in the batch until all are finished.
    """
    stops = torch.tensor(sorted(frozen.stop_ids), device=frozen.device)
    branches = [*requests[0].branches]
    state = {name: _opened(frozen, [r.branches[name].ids for r in requests]) for name in branches}
    running = torch.ones(len(requests), dtype=torch.bool, device=frozen.device)
    columns: list[Tensor] = []
    for _ in range(requests[0].sampling.max_new_tokens):
        z = {name: _step(frozen, branch) for name, branch in state.items()}
        tokens = choice(_combined(z, requests)).where(running, stops[0])
        columns.append(tokens)
        running = running & ~torch.isin(tokens, stops)
        if not running.any():
            break
        for branch in state.values():
            branch["ids"] = tokens[:, None]
            branch["mask"] = torch.cat([branch["mask"], torch.ones_like(tokens[:, None])], 1)
    return [_until_stop(frozen, row) for row in torch.stack(columns, 1).tolist()]


def _combined(z: dict[str, Tensor], requests: Sequence[Request]) -> Tensor:
    return expert_anti_expert(z["base"], z.get("expert", z["base"]), z["anti"], requests[0].alpha)


def _opened(frozen: FrozenModel, contexts: Sequence[Sequence[int]]) -> dict[str, Any]:
    ids, mask = left_padded(contexts, frozen.device)
    return {"ids": ids, "mask": mask, "cache": None}


def _step(frozen: FrozenModel, branch: dict[str, Any]) -> Tensor:
    out = frozen.model(
        input_ids=branch["ids"],
        attention_mask=branch["mask"],
        position_ids=position_ids(branch["mask"])[:, -branch["ids"].shape[1] :],
        past_key_values=branch["cache"],
        use_cache=True,
        logits_to_keep=1,
    )
    branch["cache"] = out.past_key_values
    return out.logits[:, -1]


def generated(frozen: FrozenModel, contexts: Sequence[Sequence[int]], **settings: Any) -> list[list[int]]:
    """`model.generate` on some contexts as one padded batch; answers end before the first stop token."""
    ids, mask = left_padded(contexts, frozen.device)
    pad = min(frozen.stop_ids)
    out = frozen.model.generate(ids, attention_mask=mask, pad_token_id=pad, **settings)
    return [_until_stop(frozen, row) for row in out[:, ids.shape[1] :].tolist()]


def library_guidance(frozen: FrozenModel, requests: Sequence[Request]) -> list[list[int]]:
    """Anti-Expert as `transformers.generate` has it: classifier-free guidance with scale 1 + alpha."""
    anti, mask = left_padded([r.branches["anti"].ids for r in requests], frozen.device)
    return generated(
        frozen,
        [r.branches["base"].ids for r in requests],
        negative_prompt_ids=anti,
        negative_prompt_attention_mask=mask,
        guidance_scale=1 + requests[0].alpha,
        max_new_tokens=requests[0].sampling.max_new_tokens,
        do_sample=False,
    )


def _until_stop(frozen: FrozenModel, ids: Sequence[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in frozen.stop_ids), len(ids))
    return list(ids[:end])
