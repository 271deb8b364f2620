"""What is wrong in a params file, a model or a judge's name, and the name that each refusal must show."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st

from steerlib.__main__ import main
from steerlib.judges import load_judge
from steerlib.models import load_model
from steerlib.params import BadInput, read_params
from steerlib.profiles import read_ratings
from steerlib.runner import plan
from steerlib.toxicity import ATTRIBUTES

PARAMS = [
    ("sede: 3", "unknown parameter 'sede'; did you mean 'seed'"),
    ("max_new_token: 5", "did you mean 'max_new_tokens'"),
    ("seed: 1\nseed: 2", "'seed' is given twice"),
    ("on: 3", "keys that are words"),
    ("- seed", "must hold lines"),
    ("contexts: " + "[" * 3000, "not valid YAML"),
    ("seed: !!python/object:os.system x", "not valid YAML"),
    ('style: "\\ud800"', "UTF-8"),
    ("seed: three\nsede: 3", "not 'three'; unknown parameter 'sede'"),  # all at once
    ("seed: true", "seed must be int"),
    ("alphas: [0.5, '1']", "alphas must be list"),
    ("temperature: 1e-4", "write 1.0e-4"),
    ("seed: 010", "010 is no plain decimal number"),
    ("judge_settings: {a: {b: .nan}}", "judge_settings must be finite"),
    ("seed: -3", "seed must be at least 0"),
    ("seed: 99999999999999999999999", "seed"),
    ("top_p: 1.5", "top_p must be above 0 and at most 1"),
    ("train_share: 1", "train_share must be between 0 and 1"),
    ("prompts_per_category: -1", "prompts_per_category must be above 0"),
    ("alphas: [0.5, 0.5]", "alphas has a value twice"),
    ('model: ""', "model must not be empty"),
    ("methods: [sda, ant_expert]", "'ant_expert' is unknown; did you mean 'anti_expert'"),
    ("positions: first_k:0", "positions: 'first_k:0'"),
    ("more_positions: [first_k:8, alll]", "'alll'"),
    ("judge: gpt-4.1", "endpoint:NAME"),
    ("contexts: {insult: {expret: kind}}", "contexts must be"),
    ("contexts: {insult: {expert: ' '}}", "contexts must be"),
    ("judge_settings: {deep: [{api_key: abcdefgh}]}", "api_key: params end up"),
    ("model: hf_abcdefghijklmnopqrst", "model: params end up"),
    ("ratings: absent.csv", "looked for /"),
    ("model: absent/folder/here", "model: 'absent/folder/here' is not there"),
    ("judge: local:absent/folder/here", "local:absent"),
    ("data_folder: nowhere", "data_folder: 'nowhere' is not there"),
    ("run: ../up", "'../up'"),
    ("run: con.txt", "'con.txt'"),
    ("notebooks: [01_user_profiles, 09_absent]", "09_absent"),
    ("notebooks: 1", "notebooks"),
]


@pytest.mark.parametrize(("params", "named"), PARAMS, ids=[text[:40] for text, _ in PARAMS])
def test_a_mistake_in_a_params_file_is_one_line_that_names_it_and_nothing_is_written(
    params: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path / "results"))
    (tmp_path / "mine.yaml").write_text(params)
    with pytest.raises(BadInput) as caught:
        plan(tmp_path / "mine.yaml")
    assert named in str(caught.value)
    assert "\n" not in str(caught.value) and "abcdefgh" not in str(caught.value)
    assert not (tmp_path / "results").exists()


def test_a_params_file_in_another_encoding_is_named_and_a_byte_order_mark_is_skipped(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3 # é", "utf-16")
    with pytest.raises(BadInput, match=r"mine\.yaml.*UTF-8"):
        plan(file)
    file.write_text("seed: 3", "utf-8-sig")
    assert read_params(file) == {"seed": 3}


TEXT = st.text("a1é/.:- \n\0{\ud800", max_size=6)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
ANYTHING = st.recursive(SCALAR, lambda s: st.lists(s, max_size=3) | st.dictionaries(TEXT, s), max_leaves=6)
KNOWN = ["alphas", "contexts", "dtype", "judge", "judge_settings", "methods", "model", "ratings", "run"]
KNOWN += ["seed", "zzz"]


@given(st.dictionaries(st.sampled_from(KNOWN), ANYTHING, max_size=3))
def test_any_params_are_taken_as_they_are_or_refused_in_one_line(tmp_path_factory, params):
    file = tmp_path_factory.mktemp("params") / "mine.yaml"
    file.write_text(json.dumps(params))
    try:
        study = plan(file)
    except BadInput as refusal:
        assert len(str(refusal).splitlines()) == 1
        return
    for stage in study.stages.values():
        for name, value in stage.given.items():
            assert name == "run" or value == params[name] or name in stage.inputs


# --- what `check` reads -------------------------------------------------------------------------------------

PILOT = "notebooks: [01_user_profiles, 03_generation_sweep]\nratings: mine.csv\nmethods: [anti_expert]\n"
PILOT += "controls: [shuffled]\nalphas: [1.0, 2.0]\nseeds: [0, 1]\nprompts_per_category: 2\n"


def checked(folder: Path, params: str, ratings: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit code of `check` in a folder of its own."""
    monkeypatch.chdir(folder)
    (folder / "mine.csv").write_text(ratings)
    (folder / "pilot.yaml").write_text(params)
    return main(["check", "pilot.yaml"])


def pilot() -> pd.DataFrame:
    """Twelve users with twelve ratings each, of the demo."""
    rated = read_ratings("demo")[0]
    few = rated[rated.user_id.isin(rated.user_id.unique()[:12])].groupby("user_id").head(12)
    return few[["user_id", "conversation_id", "prompt", "response", "rating"]]


def test_check_lists_users_ratings_prompts_by_category_memory_time_and_the_key_to_change(
    tmp_path, monkeypatch, capsys
):
    assert checked(tmp_path, PILOT, pilot().to_csv(index=False), monkeypatch) == 0
    said = capsys.readouterr().out
    assert re.search(rf"^ratings +1 files, .* MB: {tmp_path / 'mine.csv'}$", said, re.MULTILINE)
    assert "144 of 12 users (min_ratings 8)" in said and "GB are free" in said
    found = {}
    for split, total, counts in re.findall(r"(dev|test) prompts +(\d+): ([^;]*); fewer than 2 in", said):
        found[split] = {kind: int(n) for kind, n in (one.rsplit(" ", 1) for one in counts.split(", "))}
        assert [*found[split]] == [*ATTRIBUTES] and sum(found[split].values()) == int(total)
    assert found.keys() == {"dev", "test"} and "a lower prompts_per_category equal numbers" in said
    # The base, and two alphas of the user's own and of another one's category, at two seeds.
    answers = 5 * 2 * sum(sum(counts.values()) for counts in found.values())
    assert re.search(rf"^{answers} answers +about .* AMD EPYC.*, at 10 tokens", said, re.MULTILINE)


HEADER = "user_id,prompt,response,rating\n"
WITHOUT_PAIRS = PILOT.replace("03", "02_steering_vectors, 03") + "min_ratings: 3\n"
ONE_EACH = pilot().drop_duplicates("conversation_id").to_csv(index=False)
REFUSED = [
    (PILOT, HEADER + "u1,hi,yes,5\nu1,hi,Well, ok,87\n", r"ratings: .*mine\.csv, line 3"),
    (PILOT, "user_id,prompt,response\nu1,hi,yes\n", r"ratings: .*mine\.csv: column 'rating' is missing"),
    (WITHOUT_PAIRS, ONE_EACH, "ratings: .*0 train and 0"),
    (PILOT.replace("[1.0", "[-1.0"), pilot().to_csv(index=False), "arms: alpha of 'anti_expert' must be"),
]


@pytest.mark.parametrize(("params", "ratings", "named"), REFUSED)
def test_check_refuses_ratings_by_name_and_line_and_arms_that_notebook_03_would_refuse(
    tmp_path, monkeypatch, capsys, params, ratings, named
):
    assert checked(tmp_path, params, ratings, monkeypatch) == 2
    errors = capsys.readouterr().err
    assert re.match(rf"steerlib: {named}", errors) and errors.count("\n") == 1


# --- models and judges --------------------------------------------------------------------------------------

ARCHITECTURES = {
    "Mamba": "state",
    "Qwen3Next": "linear_attention",
    "Lfm2": "conv",
    "Llama4Text": "chunked_attention",
    "Gemma3nText": "share their keys",
    "Bart": "encoder",
}


@pytest.mark.parametrize("family", ARCHITECTURES)
def test_an_architecture_that_cannot_be_steered_is_refused_before_a_weight_is_read(family, tmp_path):
    settings = {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2} if family == "Lfm2" else {}
    getattr(transformers, f"{family}Config")(**settings).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}.*{ARCHITECTURES[family]}.*Llama") as failure:
        load_model(str(tmp_path), device="cpu")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("text", ['{"model_type": "nonesuch"}', "{", "[]", "{}", "", "\0"])
def test_a_models_config_that_cannot_be_read_is_one_line_that_names_the_folder(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=str(tmp_path)) as failure:
        load_model(str(tmp_path), device="cpu")
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("name", ["gpt-4.1", "endpoint:", "local:", "reward:", "", "scorer-x", None, 3])
def test_a_name_that_is_no_judge_is_refused_with_the_names_there_are(name):
    with pytest.raises(ValueError, match=f"{name!r}.*'endpoint:<model>'"):
        load_judge(name)
