"""What the alpha explorer takes from a run: prompts and vectors."""

from collections.abc import Callable

import pandas as pd
import torch

from steerlib.explorer import run_prompts, run_vectors
from steerlib.tables import write_table
from steerlib.toxicity import ATTRIBUTES
from steerlib.vectors import VectorFamily, save_family


def test_without_a_run_there_are_prompts_of_its_own(tmp_path):
    own = run_prompts(tmp_path)
    assert sorted(own["category"]) == sorted(ATTRIBUTES)
    assert run_vectors(tmp_path) == []


def run_table(split: Callable[[int], str]) -> pd.DataFrame:
    rows = [
        {
            "prompt_id": f"r{i}",
            "user_id": "u",
            "conversation_id": "c",
            "prompt": f"Words {i}",
            "split": split(i),
        }
        for i in range(4)
    ]
    rest = {"shuffled_category": "threat", "prompt_category": "", "accepted": "", "history": ""}
    return pd.DataFrame(rows).assign(category="profanity", **rest)


def test_a_runs_test_prompts_and_vectors_are_taken(tmp_path):
    write_table(tmp_path, "prompts", run_table(lambda i: "test" if i % 2 else "dev"))
    save_family(
        tmp_path / "vectors" / "m.safetensors", VectorFamily("mean", {"": {2: torch.arange(3.0)}}), {}
    )
    assert run_prompts(tmp_path).to_dict("list") == {
        "prompt_id": ["r1", "r3"],
        "prompt": ["Words 1", "Words 3"],
        "history": ["", ""],
        "category": ["profanity"] * 2,
    }
    assert run_vectors(tmp_path)[0].of("")[2].tolist() == [0, 1, 2]


def test_a_run_without_test_prompts_gives_all_of_its_own(tmp_path):
    write_table(tmp_path, "prompts", run_table(lambda i: "dev"))  # noqa: ARG005
    assert len(run_prompts(tmp_path)) == 4
