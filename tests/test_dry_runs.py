"""The papers' own params files from end to end: a tiny random Llama and synthetic records in the shape of PRISM.

Sizes are cut, and nothing else: fields, quirks and number of users are those of PRISM's codebook, layers and vocabulary
those of the model that each file names.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import transformers
import yaml
from tiny import character_tokenizer, tiny_model

from steerlib.models import FrozenModel
from steerlib.profiles.sources import DEMO
from steerlib.runner import plan, run_study
from steerlib.tables import ROOT, read_manifest, read_table

pytestmark = pytest.mark.slow

USERS = 1500
NESTED = ("religion", "ethnicity", "location")
SURVEY_CELLS, UTTERANCE_CELLS = range(9, 31), range(54, 69)  # of the codebook


def drawn(entry: dict, rng: np.random.Generator) -> object:
    """A value of a codebook variable with its published frequencies; None as often as it is missing."""
    counts = {key: n for key, n in entry["values"].items() if isinstance(n, int)}
    if entry["variable_type"] in ("categorical", "binary") and counts:
        value = rng.choice([*counts], p=np.array([*counts.values()]) / sum(counts.values()))
        return {"null": None, "true": True, "false": False}.get(value, str(value))
    kinds = {
        "int": 4,
        "float": 35.9,
        "dict": {"values": 50, "other": None},
        "datetime": "2023-12-01 10:00:00",
    }
    return kinds.get(entry["variable_type"], "made-up words, \u2014 and a line\nbreak")


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="module")
def prism(tmp_path_factory, codebook) -> Path:
    """Folder with survey.jsonl and utterances.jsonl of 1,500 users, whose texts are those of the demo."""
    folder, rng = tmp_path_factory.mktemp("prism"), np.random.default_rng(0)
    told: dict[str, list[dict]] = {}
    for line in (DEMO / "utterances.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        told.setdefault(row["user_id"], []).append(row)
    entries = {
        cells: [e for e in codebook if e["_cell"] in cells] for cells in (SURVEY_CELLS, UTTERANCE_CELLS)
    }
    survey, utterances = [], []
    for i in range(USERS):
        user: dict = {"user_id": f"user{i}"}
        for entry in entries[SURVEY_CELLS][1:]:
            head, _, name = entry["variable_name"].partition("_")
            if head in NESTED:
                user[head] = (user.get(head) or {}) | ({name: drawn(entry, rng)} if name else {})
            else:
                user[entry["variable_name"]] = drawn(entry, rng)
        survey.append(user)
        if user["survey_only"]:
            continue
        for row in told[[*told][i % len(told)]]:
            new = {entry["variable_name"]: drawn(entry, rng) for entry in entries[UTTERANCE_CELLS]}
            new |= {key: row[key] for key in new.keys() & row.keys() - {"model_name", "model_provider"}}
            ids = ("utterance_id", "interaction_id", "conversation_id")
            new |= {key: f"u{i}-{row[key]}" for key in ids} | {"user_id": user["user_id"]}
            new |= {"model_response": "EMPTY STRING"} if rng.random() < 1e-3 else {}
            utterances.append(new)
    write_lines(folder / "survey.jsonl", survey)
    write_lines(folder / "utterances.jsonl", utterances)
    return folder


@pytest.fixture(scope="module")
def codebook() -> list[dict]:
    folder = ROOT.parent / "shared" / "data" / "prism_fragments"
    if not folder.exists():
        pytest.skip("PRISM's codebook (prism_fragments/codebook_entries.json) is not here")
    return json.loads((folder / "codebook_entries.json").read_text(encoding="utf-8"))


def saved_llama(folder: Path, vocabulary: int) -> str:
    """A random Llama of 32 narrow layers whose tokenizer has as many tokens as the paper's model."""
    tokenizer = character_tokenizer()
    tokenizer.add_tokens([" A", " B", " C", " D"])  # one token each, as of any word-piece tokenizer
    tokenizer.add_tokens([f"\u2400{i}" for i in range(vocabulary - len(tokenizer))])
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 32, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=vocabulary, max_position_embeddings=8192, **shape)
    model: FrozenModel = tiny_model(config)
    model.model.float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


CUT = {"max_new_tokens": 6, "seeds": [0], "n_questions": 8, "questions": "demo"}
PRISM = CUT | {"prompts_per_category": 2, "explorer_tokens": 6}
SMALLER = {
    "steer_away_llama31_8b": (128_256, PRISM | {"alphas": [0.5, 2.2]}),
    "caa_prism_llama31_8b": (
        128_256,
        PRISM | {"caa_alphas": [0.3, 0.6], "max_pairs": 20, "effect_tokens": 4},
    ),
    "sda_llama2_7b": (32_000, CUT | {"n_per_set": 3, "sda_ks": [2.0], "workers": 2}),
}
"""By params file: the vocabulary of its model, and what is cut. The last decodes on two Ray workers."""


@pytest.mark.parametrize("name", SMALLER)
def test_a_papers_params_go_through_every_notebook(name, prism, tmp_path, monkeypatch):
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path / "results"))
    vocabulary, smaller = SMALLER[name][0], dict(SMALLER[name][1])
    given = yaml.safe_load((ROOT / "params" / f"{name}.yaml").read_text(encoding="utf-8"))
    data = ROOT.parent / "shared" / "data" / "sda_my_dataset" if name.startswith("sda") else prism
    model, file = saved_llama(tmp_path / "model", vocabulary), tmp_path / f"{name}.yaml"
    smaller |= {"judge": f"local:{model}"} if "judge" in given else {}  # the paper's needs a key
    file.write_text(yaml.safe_dump(given | smaller), encoding="utf-8")
    study = plan(file, data_folder=str(data), model=model)
    folder = run_study(study)
    assert read_manifest(folder).keys() >= {stage for stage in study.stages if stage.startswith("0")} - {
        "06_alpha_explorer"
    }
    answers, arms = read_table(folder, "generations"), read_table(folder, "arms")
    assert set(arms.method) >= {*given["methods"], "base"}
    assert not answers.duplicated(["arm_id", "prompt_id", "seed"]).any()
    assert (folder / "report.html").exists()
