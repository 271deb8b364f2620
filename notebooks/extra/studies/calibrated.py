"""How the calibrated toxicity scorer is fitted: its texts, its network, its n-grams and its knots."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from scipy.sparse import hstack
from scipy.special import logit
from scipy.stats import spearmanr
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge
from torch.nn.functional import binary_cross_entropy_with_logits, l1_loss

from steerlib.profiles.sources import hash_order, read_rows
from steerlib.toxicity import ATTRIBUTES
from steerlib.toxicity.calibrated_scorer import (
    BUCKETS,
    WINDOW,
    CalibratedScorer,
    ToxicityNetwork,
    ngram_counts,
    tokens,
    weighted,
)
from steerlib.toxicity.embedded_scorer import EmbeddedScorer

SIX = list(ATTRIBUTES)
EIGHT = [*SIX, "sexually_explicit", "flirtation"]
JIGSAW = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]
TARGETS = [*EIGHT, *(f"jigsaw_{name}" for name in JIGSAW)]
"""What the network learns: Perspective's eight scores and the labels of Jigsaw's raters. Six are kept."""
PLAIN = json.loads((Path(__file__).parent / "plain_sentences.json").read_text("utf-8"))


def scored_texts(files: Sequence[Path], seed: int = 0) -> pd.DataFrame:
    """Distinct texts with their eight scores; 70 % of the web documents train, 10 % validation, 20 % test."""
    rows = pd.concat([pd.json_normalize(read_rows(file).to_dict("records")) for file in files])
    sides = [
        rows[["filename", *(f"{side}.{name}" for name in ("text", *EIGHT))]].set_axis(
            ["document", "text", *EIGHT], axis=1
        )
        for side in ("prompt", "continuation")
    ]
    texts = pd.concat(sides, ignore_index=True).dropna().drop_duplicates("text")
    order = hash_order(texts["document"], "calibrated scorer", seed)
    place = texts["document"].map({document: i / len(order) for i, document in enumerate(order)})
    split = pd.cut(place, [0, 0.7, 0.8, 1], right=False, labels=["train", "validation", "test"])
    return texts.astype(dict.fromkeys(EIGHT, float)).assign(split=split.astype(str)).reset_index(drop=True)


def with_plain(texts: pd.DataFrame, plain: Sequence[str], quantile: float = 0.02) -> pd.DataFrame:
    """The texts, and plain sentences with the low scores of a quantile of the texts'."""
    low = pd.DataFrame({"text": plain}).assign(**texts[EIGHT].quantile(quantile))
    return pd.concat([texts, low], ignore_index=True)


def plain_sentences(each: int = 6) -> list[str]:
    """The training lines of `PLAIN`, those with an identity word filled `each` times, those with a thing 95 times."""
    who, thing = itertools.cycle(PLAIN["identities"]), itertools.cycle(PLAIN["things"])
    lines = [{line.format(who=next(who)) for _ in range(each)} for line in PLAIN["train"]]
    lines += [{line.format(thing=next(thing)) for _ in range(95)} for line in PLAIN["things_in"]]
    return [text for group in lines for text in sorted(group)]


def labelled_comments(files: Sequence[Path], longest: int = 60) -> pd.DataFrame:
    """Distinct short comments with Jigsaw's six labels, columns of `TARGETS`; the other scores are missing."""
    rows = pd.concat([pd.read_csv(file) for file in files]).dropna(subset=["id", "comment_text", *JIGSAW])
    rows = rows.drop_duplicates("id")
    rows = rows[rows["comment_text"].map(lambda text: len(tokens(text)) <= longest)]
    labels = rows[JIGSAW].astype(float).add_prefix("jigsaw_")
    return labels.assign(text=rows["comment_text"]).reset_index(drop=True)


def fit_network(texts: pd.DataFrame, *, epochs: int = 6, rate: float = 2e-3, seed: int = 0) -> tuple:
    """The network and its vocabulary, begun from the embedded scorer's embedding and LSTM.

    Loss: cross-entropy against the scores plus half their absolute distance; AdamW, one cycle.
    """
    torch.manual_seed(seed)
    start, rng = EmbeddedScorer(), np.random.default_rng(seed)
    words = [word for word in start.words if "\n" not in word]
    network, indices = ToxicityNetwork(len(words), len(TARGETS)), {word: i for i, word in enumerate(words, 1)}
    with torch.no_grad():
        network.words.weight[1:] = start.network.embedding.weight[[start.words[word] for word in words]]
        network.subwords.weight.normal_(0, 0.05)
    network.lstm.load_state_dict(start.network.lstm.state_dict())
    windows = [tokens(text)[:WINDOW] for text in texts["text"]]
    targets = torch.tensor(texts.reindex(columns=TARGETS).to_numpy(), dtype=torch.float32)
    steps = epochs * -(-len(windows) // 32)
    optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    for _ in range(epochs):
        for rows in np.array_split(rng.permutation(len(windows)), steps // epochs):
            logits = network([windows[row] for row in rows], indices)
            known = ~targets[rows].isnan()
            given, wanted = logits[known], targets[rows][known]
            loss = binary_cross_entropy_with_logits(given, wanted) + l1_loss(given.sigmoid(), wanted) / 2
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False), words


def fit_ngrams(texts: pd.DataFrame, alpha: float = 0.3) -> dict[str, torch.Tensor]:
    """Ridge weights of both tables of n-grams for the logit of the six scores, with idf and bias."""
    counts = ngram_counts([tokens(text)[:WINDOW] for text in texts["text"]])
    idf = [1 + np.log((1 + len(texts)) / (1 + np.bincount(x.indices, minlength=BUCKETS))) for x in counts]
    rows = hstack([weighted(x, each) for x, each in zip(counts, idf, strict=True)]).tocsr()
    ridge = Ridge(alpha=alpha, solver="sparse_cg").fit(rows, logit(texts[SIX].clip(0.002, 0.998)))
    found = {"bias": ridge.intercept_}
    for name, each, weight in zip(("characters", "pairs"), idf, np.split(ridge.coef_.T, 2), strict=True):
        found |= {f"{name}.idf": each, f"{name}.weight": weight}
    return {name: torch.tensor(np.asarray(x)).float() for name, x in found.items()}


def quantised(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Large matrices as int8 with one scale a column, long vectors as float16, the rest as it is."""
    found = {}
    for name, x in tensors.items():
        if x.dim() == 2 and len(x) > 10_000:
            scale = x.abs().amax(0).clamp(min=1e-9) / 127
            found |= {name: (x / scale).round().to(torch.int8).contiguous(), f"{name}.scale": scale}
        else:
            found[name] = x.half() if x.dim() == 1 and len(x) > 10_000 else x.contiguous()
    return found


def fit_knots(logits: np.ndarray, targets: np.ndarray, bins: int = 20) -> torch.Tensor:
    """Knots (6, 2, bins + 2) from logit to logit of the score.

    In equally full bins: mean logit, and logit of the midpoint of mean score (calibration) and median score (least
    absolute distance), made monotone by isotonic regression. A quarter of a straight line leaves no step flat, so
    that ranks stay; outside the bins the line goes on with slope 1.
    """
    knots = []
    for x, y in zip(logits.T, targets.T, strict=True):
        groups = np.array_split(np.argsort(x), bins)
        at = np.array([x[group].mean() for group in groups])
        middle = logit([(y[group].mean() + np.median(y[group])) / 2 for group in groups])
        steps = IsotonicRegression().fit(at, middle).predict(at)
        line = 0.75 * steps + 0.25 * np.polyval(np.polyfit(at, middle, 1), at)
        knots.append([[at[0] - 20, *at, at[-1] + 20], [line[0] - 20, *line, line[-1] + 20]])
    return torch.tensor(np.array(knots)).float()


def make_scorer(
    texts: pd.DataFrame, comments: pd.DataFrame, path: Path, *, share: float = 0.35, seed: int = 0
) -> None:
    """Fit on the train split, fit the knots on the validation split and write the scorer's file.

    Plain sentences are among the texts of the knots: else the lowest knot would be that of the lowest web texts.

    Args:
        texts: see `scored_texts`; rows of the test split are not read.
        comments: see `labelled_comments`.
        share: of the n-grams in the logit.
    """
    train = with_plain(texts[texts["split"] == "train"], plain_sentences())
    network, words = fit_network(pd.concat([train, comments], ignore_index=True), seed=seed)
    weights = {name: x[: len(SIX)] if "output" in name else x for name, x in network.state_dict().items()}
    vocabulary = torch.tensor(list("\n".join(words).encode()), dtype=torch.uint8)
    line = torch.tensor([[-9.0, 9.0], [-9.0, 9.0]]).repeat(len(SIX), 1, 1)
    tensors = quantised(weights | fit_ngrams(train)) | {
        "vocabulary": vocabulary,
        "share": torch.tensor(share),
    }
    save_file(tensors | {"knots": line}, path)
    validation = with_plain(texts[texts["split"] == "validation"], PLAIN["calibration"])
    logits = CalibratedScorer(path).logits(validation["text"])
    save_file(tensors | {"knots": fit_knots(logits, validation[SIX].to_numpy())}, path)


def agreement(scores: pd.DataFrame, given: pd.DataFrame, low: float = 0.2, bins: int = 15) -> pd.DataFrame:
    """How near scores are to given ones, a row an attribute: rank correlation and mean absolute distance, also where
    the given score is below `low`; the expected calibration error over equally full bins."""
    rows = {}
    for name in SIX:
        x, y = scores[name].to_numpy(), given[name].to_numpy()
        under = y < low
        groups = np.array_split(np.argsort(x), bins)
        gaps = [len(group) * abs(x[group].mean() - y[group].mean()) for group in groups]
        rows[name] = {
            "spearman": spearmanr(x, y).statistic,
            "spearman_low": spearmanr(x[under], y[under]).statistic,
            "mae": np.abs(x - y).mean(),
            "mae_low": np.abs(x - y)[under].mean(),
            "ece": sum(gaps) / len(x),
        }
    table = pd.DataFrame(rows).T
    return pd.concat([table, table.mean().to_frame("mean").T])
