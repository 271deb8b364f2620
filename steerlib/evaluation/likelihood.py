"""How likely given answers are under a language model: perplexity by a model that did not write them."""

import pandas as pd

from steerlib.likelihood import GivenAnswer, summed_nll
from steerlib.models import FrozenModel, check_length
from steerlib.progress import progress_bar
from steerlib.prompting import TokenIds, prompt_ids, read_history
from steerlib.tables import SCHEMA


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
