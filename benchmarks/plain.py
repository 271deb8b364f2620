"""The decoders that ours is timed against, written as their users write them: one prompt, one alpha at a time."""

import torch

from steerlib.generation import expert_anti_expert
from steerlib.generation.requests import Request
from steerlib.models import FrozenModel


@torch.inference_mode()
def full_prefix_loop(frozen: FrozenModel, request: Request) -> list[int]:
    """Expert-Anti-Expert as the DExperts release decodes it: every branch reads the whole prefix for every token."""
    answer: list[int] = []
    for _ in range(request.sampling.max_new_tokens):
        z = [
            frozen.model(torch.tensor([[*request.branches[name].ids, *answer]])).logits[:, -1]
            for name in ("base", "expert", "anti")
        ]
        token = int(expert_anti_expert(*z, request.alpha).argmax())
        if token in frozen.stop_ids:
            break
        answer.append(token)
    return answer


@torch.inference_mode()
def cached_loop(frozen: FrozenModel, request: Request) -> list[int]:
    """The same with a KV cache for each branch."""
    inputs = {name: torch.tensor([request.branches[name].ids]) for name in ("base", "expert", "anti")}
    caches: dict = dict.fromkeys(inputs)
    answer: list[int] = []
    for _ in range(request.sampling.max_new_tokens):
        z = []
        for name, ids in inputs.items():
            out = frozen.model(ids, past_key_values=caches[name], use_cache=True, logits_to_keep=1)
            caches[name] = out.past_key_values
            z.append(out.logits[:, -1])
        token = int(expert_anti_expert(*z, request.alpha).argmax())
        if token in frozen.stop_ids:
            break
        answer.append(token)
        inputs = {name: torch.tensor([[token]]) for name in inputs}
    return answer


@torch.inference_mode()
def library_guidance(frozen: FrozenModel, request: Request) -> list[int]:
    """Anti-Expert as `transformers.generate` has it: classifier-free guidance with scale 1 + alpha."""
    base = torch.tensor([request.branches["base"].ids])
    out = frozen.model.generate(
        base,
        negative_prompt_ids=torch.tensor([request.branches["anti"].ids]),
        guidance_scale=1 + request.alpha,
        max_new_tokens=request.sampling.max_new_tokens,
        do_sample=False,
        pad_token_id=frozen.tokenizer.eos_token_id,
    )
    return [token for token in out[0, base.shape[1] :].tolist() if token not in frozen.stop_ids]
