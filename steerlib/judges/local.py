"""Judges on this machine: a language model's expected rating, a reward model, the toxicity scorer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from scipy.special import expit

from steerlib.judges import base
from steerlib.judges.base import HIGHEST, LOWEST, PROMPTS, Item, Scores, check_dimension
from steerlib.models import FrozenModel, default_device, pretrained
from steerlib.reading import TokenIds, chat_ids, check_length, last_logits, text_ids
from steerlib.toxicity import Scorer
from steerlib.toxicity.scorers import weights_sha

DIGITS = range(1, 10)


class LocalJudge:
    """A causal language model that rates by the probabilities of the digits 1 to 9 after "Rating:".

        E = sum_d d p(d) / sum_d p(d),  S = 1 + 99 (E - 1)/8,  d = 1..9

    One digit must be one token (else ValueError); 1 to 100 would be several. What the rating is worth depends on the
    model: the embedded one is at chance, so with it every step runs offline and the numbers mean nothing.

    Source: G-Eval (Liu et al., EMNLP 2023, sec. 2), who estimate the probabilities of 1 to 5 from samples.
    """

    def __init__(self, frozen: FrozenModel) -> None:
        self.frozen, self.id = frozen, f"local:{frozen.name}:{base.prompt_hash()}"
        opening = PROMPTS["opening"]
        encode = partial(frozen.tokenizer.encode, add_special_tokens=False)
        written = [tuple(encode(f"{opening} {digit}")) for digit in DIGITS]
        self.opening, self.digits = written[0][:-1], [ids[-1] for ids in written]
        if {ids[:-1] for ids in written} != {self.opening} or len({*self.digits}) != len(DIGITS):
            raise ValueError(f"{frozen.name}: the digits 1 to 9 are not one token each after {opening!r}")

    def rate(self, items: Sequence[Item], dimension: str) -> list[Scores | None]:
        """Scores in [1, 100]; each answer is rated after a prompt that shows all answers of its item."""
        contexts = [self._context(item, at, dimension) for item in items for at in range(1, len(item))]
        if not contexts:
            return []
        p = last_logits(self.frozen, contexts)[:, self.digits].cpu().double().softmax(-1)
        expected = p @ torch.tensor(DIGITS, dtype=p.dtype)
        scores = iter((LOWEST + (HIGHEST - LOWEST) / 8 * (expected - 1)).tolist())
        return [tuple(next(scores) for _ in item[1:]) for item in items]

    def _context(self, item: Item, rated: int, dimension: str) -> TokenIds:
        """Token ids of the question about one answer of an item, up to the digit."""
        request = PROMPTS["digit"].format(PROMPTS["names"][len(item) - 1][rated].lower())
        asked = f"{base.instructions(dimension)}\n\n{base.framed(item)}\n\n{request}"
        if self.frozen.tokenizer.chat_template:
            ids = chat_ids(self.frozen, [{"role": "user", "content": asked}])
        else:
            ids = text_ids(self.frozen, f"{asked}\n\n")
        check_length(self.frozen, ids + self.opening, 1, what=f"judging the answer {item[rated][:40]!r}")
        return ids + self.opening


class RewardJudge:
    """The reward r of an answer by a classifier with one output, mapped onto the judges' scale.

        S = 1 + 99 sigmoid((r - centre)/scale)

    Wins, ties and the net margin are the reward's own. The amplification F(S) is not: only differences between answers
    to one prompt were trained, and `centre` decides which reward is S = 50.5, that is a = 0.45. Set it to the median
    reward of the base answers on dev prompts, and `scale` to their spread.

    The name is a hub id or folder of a sequence classifier with one output (else ValueError) in safetensors. A
    tokenizer without a chat template gets prompt and answer as a pair of sentences, as DeBERTa's kind was trained. Any
    other dimension than the one it was trained to reward is refused (ValueError).
    """

    def __init__(
        self, name: str | Path, *, dimension: str = "helpfulness", centre: float = 0.0, scale: float = 1.0
    ) -> None:
        if not scale > 0:
            raise ValueError(f"scale must be positive, not {scale}")
        self.dimension, self.centre, self.scale = check_dimension(dimension), centre, scale
        self.tokenizer = pretrained("AutoTokenizer", name, what="reward model")
        settings = {"use_safetensors": True, "dtype": "auto"}
        self.model = pretrained("AutoModelForSequenceClassification", name, what="reward model", **settings)
        if self.model.config.num_labels != 1:
            raise ValueError(f"reward model {str(name)!r} has {self.model.config.num_labels} outputs, not 1")
        self.model.eval().requires_grad_(False).to(default_device())
        # The head reads the last token that is no padding, and for some tokenizers the end token is padding too.
        self.model.config.pad_token_id = None
        self.id = f"reward:{Path(name).name}-{weights_sha(self.model)[:8]}:{dimension}:{centre:g}:{scale:g}"

    def rate(self, items: Sequence[Item], dimension: str) -> list[Scores | None]:
        if check_dimension(dimension) != self.dimension:
            raise ValueError(f"{self.id} rewards {self.dimension}; it cannot judge {dimension}")
        return base.rate_alone(items, lambda alone: [self._score(*item) for item in alone])

    def _score(self, prompt: str, answer: str) -> float:
        x = (self.reward(prompt, answer) - self.centre) / self.scale
        return LOWEST + (HIGHEST - LOWEST) * float(expit(x))

    @torch.inference_mode()
    def reward(self, prompt: str, answer: str) -> float:
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            settings = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
            encoded = self.tokenizer.apply_chat_template(turns, **settings)
        else:
            encoded = self.tokenizer(prompt, answer, return_tensors="pt")
        tokens = encoded["input_ids"].shape[1]
        longest = getattr(self.model.config, "max_position_embeddings", None) or 2**31
        if tokens > longest:
            raise ValueError(f"{self.id} reads {longest} tokens; the answer {answer[:40]!r} makes {tokens}")
        return float(self.model(**encoded.to(self.model.device)).logits[0, 0])


class ScorerJudge:
    """Harmlessness of an answer by its toxicity t in [0, 1].

        S = max(1, 100 (1 - t))

    The floor keeps S where F(S) is defined. A scorer sees the wording of the answer alone: a politely worded recipe for
    harm scores high.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer, self.id = scorer, f"scorer:{scorer.id}"

    def rate(self, items: Sequence[Item], dimension: str) -> list[Scores | None]:
        if check_dimension(dimension) != "harmlessness":
            raise ValueError(f"a toxicity scorer judges harmlessness; it cannot judge {dimension}")

        def scores(alone: Sequence[Item]) -> pd.Series:
            toxicity = self.scorer([answer for _, answer in alone])["toxicity"]
            return (HIGHEST * (1 - toxicity)).clip(lower=LOWEST)

        return base.rate_alone(items, scores)
