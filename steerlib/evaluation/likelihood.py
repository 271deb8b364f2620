"""Where in an answer the instruction matters: divergence of the instructed from the plain branch, token by token.

How likely given answers are under a language model: perplexity by a model that did not write them.

By how much each arm finds the preferred answer of a pair more likely than the other: margins of given texts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import pandas as pd
import torch
from torch import Tensor

from steerlib.decoding.contexts import BranchModels, Contexts, branch_ids, default_contexts
from steerlib.decoding.requests import Request, Stream, make_requests
from steerlib.evaluation.multiple_choice import forced_logits
from steerlib.models import FrozenModel
from steerlib.reading import (
    GivenAnswer,
    TokenIds,
    answer_ids,
    check_length,
    prompt_ids,
    read_history,
    summed_nll,
)
from steerlib.residual import Factor, VectorFamily, VectorKey, Vectors, add_to_residual, vectors_by_key
from steerlib.rules import RULES, js_divergence
from steerlib.tables import SCHEMA, check_table, progress_bar


def answer_likelihood(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    generations: pd.DataFrame,
    *,
    style: str,
    batch_tokens: int = 2048,
) -> pd.DataFrame:
    """Negative log-likelihood of each answer, given its prompt, under any model.

        nll = -sum_t ln p(y_t | prompt, y_<t)     over the answer's tokens, in nats

    Answers are read as text, so a model with another tokenizer can judge them; what ends an answer is no token of
    it. Under the model that wrote an answer, `nll` is the table's `nll_base` where its text has the same tokens
    again. Prompt and answer are tokenised apart and an answer keeps the white space that it opens with.

    Args:
        frozen: the model that judges; `FrozenModel.name` names it in the table.
        prompts: prompt_id, prompt and, where there are earlier turns, history.
        generations: arm_id, prompt_id, seed, text.
        style: of the generations, "chat" (by the judging model's own template) or "continuation".
        batch_tokens: tokens in one forward pass, pads counted; bounds memory.

    Returns:
        The fluency table, in the order of the generations: nll in nats, n_tokens of the judging model; both 0
        for an empty answer. Perplexities of models with unlike tokenizers are not comparable with each other.

    Raises:
        ValueError: a prompt that is not in its table or is empty, or prompt and answer longer than the model's
            context.

    Source: evaluation of Liu et al., DExperts, ACL 2021, where a larger, independent model judges; they average
    perplexities of single texts, see `perplexity`.
    """
    placed = _tokenised(frozen, prompts, generations, style)
    with progress_bar(len(set(placed)), unit="answer", what=f"likelihood, {frozen.name}") as bar:
        nll = summed_nll(frozen, placed, batch_tokens=batch_tokens, progress=bar.update)
    rows = generations[["arm_id", "prompt_id", "seed"]].reset_index(drop=True)
    rows = rows.assign(
        scorer_model=frozen.name,
        nll=nll,
        n_tokens=[len(answer.answer) for answer in placed],
    )
    return rows[list(SCHEMA["fluency"].columns)]


def _tokenised(
    frozen: FrozenModel, prompts: pd.DataFrame, generations: pd.DataFrame, style: str
) -> list[GivenAnswer]:
    rows = {row["prompt_id"]: row for row in prompts.to_dict("records")}
    rendered: dict[str, TokenIds] = {}
    placed = []
    for prompt, text in zip(generations["prompt_id"], generations["text"], strict=True):
        if prompt not in rows:
            raise ValueError(f"prompt {prompt!r} of the generations is not in the prompts")
        if prompt not in rendered:
            row = rows[prompt]
            history = read_history(row.get("history") or "")
            rendered[prompt] = prompt_ids(frozen, row["prompt"], style=style, history=history)
        answer = tuple(frozen.tokenizer(text, add_special_tokens=False).input_ids)
        check_length(frozen, rendered[prompt], len(answer), what=f"answer to prompt {prompt}")
        placed.append(GivenAnswer(rendered[prompt], answer))
    return placed


POSITIONS = 64
"""Answer positions that are combined at one time: in double precision all would be the largest thing in memory."""

Read = Mapping[Stream, Sequence[Tensor]]


def likelihood_margins(
    frozen: FrozenModel,
    pairs: pd.DataFrame,
    arms: pd.DataFrame,
    *,
    vectors: Sequence[VectorFamily] = (),
    contexts: Contexts | None = None,
    factors: Sequence[Factor] = (),
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
        vectors: families of steering vectors.
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
    models, known = {"": frozen, **(branch_models or {})}, vectors_by_key(vectors)
    asked = pairs.rename(columns={"pair_id": "prompt_id"})
    requests = make_requests(
        frozen,
        asked,
        arms,
        seeds=[0],
        contexts=contexts,
        vectors=vectors,
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
    vectors: Mapping[VectorKey, Vectors],
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
    vectors: Mapping[VectorKey, Vectors],
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
        combined = RULES[request.method].steer(high, alpha)
        total += float((combined.gather(-1, tokens[part])[:, 0] - combined.logsumexp(-1)).sum())
    return total


COLUMNS = ["prompt_id", "place", "token_id", "token", "js", "lp_base", "lp_instructed"]


def token_divergence(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    answers: pd.Series,
    *,
    style: str = "chat",
    contexts: Contexts | None = None,
    branch: str = "instructed",
    batch_tokens: int = 1024,
) -> pd.DataFrame:
    """Jensen-Shannon divergence of two branches at every token of given answers.

        JS_t = KL(P1 || M)/2 + KL(P2 || M)/2,   P1 = P(. | Q, y_<t),  P2 = P(. | Q, I, y_<t),  M = (P1 + P2)/2

    It is what SDA's temperature reads while it decodes, here read off a text that is already there.

    Args:
        frozen: the model.
        prompts: prompt_id, prompt, category (key of the contexts).
        answers: text by prompt_id; prompts without one are left out, as are empty texts.
        style: "chat" or "continuation".
        contexts: by category; None for the style's defaults.
        branch: the second branch, "instructed", "expert" or "anti"; the first is always the plain one.
        batch_tokens: answer tokens in one forward pass; bounds memory.

    Returns:
        One row a token: prompt_id, place (from 0), token_id, token (its text), js in nats (0 to ln 2), and the
        token's own log-probability under each branch, lp_base and lp_instructed (the second branch), in nats.

    Raises:
        ValueError: an answer to no prompt, contexts that lack the branch, or a text longer than the model's context.

    Source: SDA, eq. 6.
    """
    texts = default_contexts(style) if contexts is None else contexts
    placed = _placed(frozen, prompts, answers, style, texts, branch)
    rows: list[tuple] = []
    with progress_bar(len(placed), unit="answer", what="divergence") as bar:
        for prompt_id, (branches, ids) in placed.items():
            ((_, z),) = forced_logits(frozen, branches, [ids], batch_tokens=batch_tokens)
            words = frozen.tokenizer.batch_decode([[one] for one in ids])
            columns = (range(len(ids)), ids, words, *_divergence(z, ids, branch))
            rows += [(prompt_id, *row) for row in zip(*columns, strict=True)]
            bar.update()
    return pd.DataFrame(rows, columns=COLUMNS)


def _placed(
    frozen: FrozenModel,
    prompts: pd.DataFrame,
    answers: pd.Series,
    style: str,
    contexts: Contexts,
    branch: str,
) -> dict[str, tuple[dict[str, TokenIds], TokenIds]]:
    """By prompt, the ids that both branches read and those of the answer."""
    strange = answers.index.difference(prompts["prompt_id"])
    if len(strange):
        raise ValueError(f"answer to {strange[0]!r}: there is no such prompt")
    placed = {}
    for row in prompts[prompts["prompt_id"].isin(answers.index)].itertuples():
        ids = answer_ids(frozen, answers[row.prompt_id], style=style)
        branches = {
            name: branch_ids(frozen, row.prompt, name, category=row.category, style=style, contexts=contexts)
            for name in ("base", branch)
        }
        for name, context in branches.items():
            check_length(frozen, context, len(ids), what=f"prompt {row.prompt_id}, branch {name}")
        if ids:
            placed[row.prompt_id] = (branches, ids)
    return placed


def _divergence(z: dict[str, Tensor], ids: TokenIds, branch: str) -> Iterator[list[float]]:
    tokens = torch.tensor(ids, device=z["base"].device)[:, None]
    yield js_divergence(z["base"], z[branch]).tolist()
    for name in ("base", branch):
        high = z[name] if z[name].device.type == "mps" else z[name].double()
        yield high.log_softmax(-1).gather(-1, tokens)[:, 0].tolist()
