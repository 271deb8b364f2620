"""The papers' own params files from end to end: a tiny random Llama and the demo's records, which have PRISM's fields.

Sizes are cut, and nothing else: the number of users is PRISM's, layers and vocabulary are those of the model that each
file names.
"""

import json
from pathlib import Path

import pytest
import transformers
import yaml
from tiny import character_tokenizer, tiny_model

from steerlib.models import FrozenModel
from steerlib.profiles.sources import DEMO
from steerlib.runner import plan, run_study
from steerlib.tables import ROOT, read_manifest, read_table

pytestmark = pytest.mark.slow

COPIES = 31  # of the demo's 48 users; PRISM has 1,500
IDS = ("user_id", "conversation_id", "interaction_id", "utterance_id")


@pytest.fixture(scope="module")
def prism(tmp_path_factory) -> Path:
    """Folder with survey.jsonl and utterances.jsonl of as many users as PRISM has."""
    folder = tmp_path_factory.mktemp("prism")
    for name in ("survey.jsonl", "utterances.jsonl"):
        rows = [json.loads(line) for line in (DEMO / name).read_text(encoding="utf-8").splitlines()]
        with (folder / name).open("w", encoding="utf-8") as file:
            for i in range(COPIES):
                copies = [row | {key: f"{i}-{row[key]}" for key in IDS if key in row} for row in rows]
                file.writelines(json.dumps(row) + "\n" for row in copies)
    return folder


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
def test_a_papers_params_go_through_every_notebook(name, prism, real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path / "results"))
    vocabulary, smaller = SMALLER[name][0], dict(SMALLER[name][1])
    given = yaml.safe_load((ROOT / "params" / f"{name}.yaml").read_text(encoding="utf-8"))
    data = real_data("sda_my_dataset") if name.startswith("sda") else prism
    model, file = saved_llama(tmp_path / "model", vocabulary), tmp_path / f"{name}.yaml"
    smaller |= {"judge": f"local:{model}"} if "judge" in given else {}  # the paper's needs a key
    file.write_text(yaml.safe_dump(given | smaller), encoding="utf-8")
    study = plan(file, data_folder=str(data), model=model)
    folder = run_study(study)
    assert read_manifest(folder).keys() >= {stage for stage in study.stages if stage.startswith("0")}
    answers, arms = read_table(folder, "generations"), read_table(folder, "arms")
    assert set(arms.method) >= {*given["methods"], "base"}
    assert not answers.duplicated(["arm_id", "prompt_id", "seed"]).any()
    assert (folder / "report.html").exists()
