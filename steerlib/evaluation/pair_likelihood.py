"""By how much each arm finds the preferred answer of a pair more likely than the other: margins of given texts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import pandas as pd
import torch
from torch import Tensor

from steerlib.evaluation.forced import forced_logits
from steerlib.generation.branches import BranchModels
from steerlib.generation.contexts import Contexts
from steerlib.generation.requests import Factors, Request, make_requests
from steerlib.generation.rules import RULES
from steerlib.generation.streams import Stream
from steerlib.models import FrozenModel, check_length
from steerlib.progress import progress_bar
from steerlib.prompting import TokenIds, answer_ids
from steerlib.tables import check_table
from steerlib.vectors.residual import Vectors, add_to_residual

POSITIONS = 64
"""Answer positions that are combined at one time: in double precision all would be the largest thing in memory."""

Read = Mapping[Stream, Sequence[Tensor]]


def likelihood_margins(
    frozen: FrozenModel,
    pairs: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    vectors: Mapping[str, Vectors] | None = None,
    contexts: Contexts | None = None,
    factors: Factors | None = None,
    branch_models: BranchModels | None = None,
    per_token: bool = False,
    batch_tokens: int = 1024,
) -> pd.DataFrame:
    """Margin of every pair under every arm, the answers being given and not written.

        m = log p(y+ | x) - log p(y- | x),     log p(y | x) = sum_t log softmax(z_new[t])[y_t]

    z_new is what the arm's rule makes of its branches, as in decoding; temperature, penalty and nucleus play no part.
    Logit rules act on logits, so a pair is read once a branch for all alphas; a steering vector needs a reading an
    alpha.

    Args:
        frozen: the model.
        pairs: pair_id, user_id, prompt, preferred, dispreferred; for arms of profile "own" or "shuffled" also
            category or shuffled_category, the user's, unless the arm's signal is a personal vector.
        arms: the arms table.
        vectors: steering vectors by name; those of users as "<family>@<hash>/<user_id>".
        contexts, factors, branch_models: see `decode`; factors are by pair_id.
        per_token: divide each side by its number of tokens.
        batch_tokens: answer tokens in one forward pass, pads counted. Logits of one pair are kept at a time.

    Returns:
        The preference table, model being the arm_id: one row an arm and pair, in the order of both, margin in nats (a
        token).

    Raises:
        ValueError: an answer without tokens or too long for the model's context, an arm that cuts the base's nucleus
            (an answer outside it has no likelihood), or what `make_requests` refuses.
    """
    cut = arms[arms["base_top_p"] < 1]
    if len(cut):
        arm, mass = cut[["arm_id", "base_top_p"]].iloc[0]
        raise ValueError(
            f"arm {arm} cuts the base to {mass} of its mass: an answer outside has no likelihood"
        )
    models, known = {"": frozen, **(branch_models or {})}, dict(vectors or {})
    asked = pairs.rename(columns={"pair_id": "prompt_id"})
    requests = make_requests(
        frozen,
        asked,
        arms,
        seeds=[0],
        contexts=contexts,
        vectors=known,
        factors=factors,
        branch_models=branch_models,
    )
    by_pair = [requests[i : i + len(arms)] for i in range(0, len(requests), len(arms))]
    placed = _answers(models, pairs, arms, by_pair)
    rows = []
    with progress_bar(len(pairs), unit="pair", what="likelihood of pairs") as bar:
        for pair, own, answers in zip(pairs.to_dict("records"), by_pair, placed, strict=True):
            margins = {}
            for request, read in _readings(models, own, answers, known, batch_tokens):
                logp = [_logprob(request, read, side, ids) for side, ids in enumerate(answers)]
                likes, dislikes = (
                    one / len(ids) if per_token else one for one, ids in zip(logp, answers, strict=True)
                )
                margins[request.arm_id] = likes - dislikes
            rows += [[arm, pair["pair_id"], pair["user_id"], margins[arm]] for arm in arms["arm_id"]]
            bar.update()
    return check_table("preference", pd.DataFrame(rows, columns=["model", "pair_id", "user_id", "margin"]))


def _answers(
    models: BranchModels, pairs: pd.DataFrame, arms: pd.DataFrame, by_pair: Sequence[Sequence[Request]]
) -> list[tuple[TokenIds, TokenIds]]:
    """Token ids of both sides of each pair, checked before anything is read."""
    styles = arms["style"].unique()
    if len(styles) != 1:
        raise ValueError(f"arms must be of one style, not of {', '.join(styles)}")
    placed = []
    for pair, requests in zip(pairs.to_dict("records"), by_pair, strict=True):
        likes = answer_ids(models[""], pair["preferred"], style=styles[0])
        dislikes = answer_ids(models[""], pair["dispreferred"], style=styles[0])
        for side, ids in (("preferred", likes), ("dispreferred", dislikes)):
            if not ids:
                raise ValueError(f"pair {pair['pair_id']}: the {side} answer has no tokens")
        longest = max(len(likes), len(dislikes))
        for stream in {one for request in requests for one in request.branches.values()}:
            check_length(models[stream.model], stream.ids, longest, what=f"pair {pair['pair_id']}")
        placed.append((likes, dislikes))
    return placed


def _readings(
    models: BranchModels,
    requests: Sequence[Request],
    answers: tuple[TokenIds, TokenIds],
    vectors: Mapping[str, Vectors],
    batch_tokens: int,
) -> Iterator[tuple[Request, Read]]:
    """Each arm with the logits of the streams that its rule reads.

    Arms that read the same streams follow each other, and what the next one reads too is kept: memory holds the base
    and the branches of one rule.
    """
    read: dict[Stream, Sequence[Tensor]] = {}
    for request in sorted(requests, key=lambda one: str(_streams(one))):
        base, wanted = request.branches["base"], _streams(request)
        read = {stream: found for stream, found in read.items() if stream == base or stream in wanted}
        for stream in wanted:
            if stream not in read:
                read[stream] = _read(models, stream, answers, vectors, batch_tokens)
        yield request, read


def _streams(request: Request) -> list[Stream]:
    """Streams that the rule of a request reads; the base's own only where the rule does."""
    beside = "steered" in request.branches
    return [stream for name, stream in request.branches.items() if name != "base" or not beside]


def _read(
    models: BranchModels,
    stream: Stream,
    answers: tuple[TokenIds, TokenIds],
    vectors: Mapping[str, Vectors],
    batch_tokens: int,
) -> list[Tensor]:
    """Logits `(n_tokens, vocab)` that predict each side's tokens in one stream."""
    frozen = models[stream.model]
    steering = (
        add_to_residual(frozen.model, vectors[stream.vector], alpha=stream.alpha, positions=stream.positions)
        if stream.vector
        else nullcontext()
    )
    with steering:
        return [
            z["x"]
            for _, z in sorted(forced_logits(frozen, {"x": stream.ids}, answers, batch_tokens=batch_tokens))
        ]


def _logprob(request: Request, read: Read, side: int, ids: TokenIds) -> float:
    """log p of one side in nats, by the request's rule."""
    z = {name: read[stream][side] for name, stream in request.branches.items() if stream in read}
    z["base"] = z["steered"] if "steered" in z else z["base"]
    tokens = torch.tensor(ids, device=z["base"].device)[:, None]
    total = 0.0
    for start in range(0, len(ids), POSITIONS):
        part = slice(start, start + POSITIONS)
        high = {name: x[part] if x.device.type == "mps" else x[part].double() for name, x in z.items()}
        alpha = torch.full(
            (len(high["base"]),), request.alpha, dtype=high["base"].dtype, device=tokens.device
        )
        combined = RULES[request.method].combine(high, alpha)
        total += float((combined.gather(-1, tokens[part])[:, 0] - combined.logsumexp(-1)).sum())
    return total
