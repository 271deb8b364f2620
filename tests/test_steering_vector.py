"""A steering vector as one thing: its numbers, its arithmetic, its files, and under plain transformers code."""

import gguf
import numpy as np
import pytest
import torch
from tiny import architecture
from torch.testing import assert_close

from steerlib.models import load_model
from steerlib.residual import VectorFamily
from steerlib.vectors import (
    SteeringVector,
    continuation_residuals,
    cosine,
    default_layers,
    describe_vectors,
    load_families,
    random_vectors,
    save_family,
)
from steerlib.vectors.steering_vector import load_family, mean_difference


def drawn(seed, layers=(1, 2), **settings):
    generator = torch.Generator().manual_seed(seed)
    vectors = {layer: torch.randn(32, generator=generator, dtype=torch.float64) for layer in layers}
    return SteeringVector(vectors, **settings)


def assert_same(left, right):
    assert list(left) == list(right)
    for layer in left:
        assert_close(left[layer], right[layer])


def test_mean_difference_by_hand():
    preferred = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    dispreferred = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 1.0]])
    assert_close(mean_difference(preferred, dispreferred), torch.tensor([1.0, 2.0]))
    with pytest.raises(ValueError, match="2 and 0 residuals"):
        mean_difference(preferred, dispreferred[:0])


def test_the_papers_layers_are_16_to_22_of_32_and_scaled_elsewhere():
    assert [default_layers(n) for n in (32, 30, 4)] == [[*range(16, 23)], [*range(15, 22)], [2, 3]]


def test_random_vectors_have_the_norm_of_the_vector_and_another_direction():
    like = {3: torch.randn(500, generator=torch.Generator().manual_seed(5))}
    drawn_once = random_vectors(like, seed=0)
    assert_close(drawn_once[3].norm(), like[3].norm())
    assert abs(cosine(drawn_once[3], like[3])) < 0.2
    assert not torch.equal(drawn_once[3], random_vectors(like, seed=1)[3])


def test_a_clean_contrast_is_stable_between_halves_and_noise_is_not():
    noise = torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(0))
    clean = describe_vectors({0: noise[0] + 2}, {0: noise[1]}, seed=0)
    none = describe_vectors({0: noise[0]}, {0: noise[1]}, seed=0)
    assert clean.split_half_cosine[0] > 0.95 > 0.5 > abs(none.split_half_cosine[0])
    vector, typical = mean_difference(noise[0], noise[1]), noise[0].norm(dim=-1).mean()
    assert none.relative_norm[0] == pytest.approx(float(vector.norm() / typical))


def test_pairs_make_the_mean_difference_of_their_texts(tiny):
    likes, dislikes, prompts = ["so kind", "good"], ["so bad", "vile"], ["You are", "It is"]
    vector = SteeringVector.from_pairs(tiny, likes, dislikes, prompts=prompts, layers=[1, 3], style="chat")
    read = {"layers": [1, 3], "style": "chat"}
    both = [continuation_residuals(tiny, prompts, side, **read) for side in (likes, dislikes)]
    assert_same(vector, SteeringVector.from_residuals(*both))
    assert vector.settings["style"] == "chat" and vector.model is tiny
    assert list(SteeringVector.from_pairs(tiny, likes, [*dislikes, "cruel"])) == [2, 3]
    with pytest.raises(ValueError):
        SteeringVector.from_pairs(tiny, likes, dislikes, prompts=prompts[:1])


def test_vectors_obey_the_rules_of_linear_algebra(tiny):
    a, b = drawn(0, model=tiny, settings={"style": "chat"}), drawn(1)
    assert_same(2 * (a + b), b * 2 + 2 * a)
    assert_same((a + b) - b, a)
    assert_same(a / 4, 0.25 * a)
    mixed = 0.6 * a - b / 2
    assert mixed.model is tiny and mixed.settings == {"style": "chat"}
    ids = torch.tensor([[5, 9, 20]])
    with a.apply(tiny), b.apply(tiny.model, alpha=0.5):
        apart = tiny.model(ids).logits
    with (a + 0.5 * b).apply(tiny):  # adding a sum to the residual is adding both
        assert_close(tiny.model(ids).logits, apart)
    with pytest.raises(ValueError, match=r"\[1, 2\] and \[2, 3\]"):
        a + drawn(1, layers=(2, 3))


def test_a_vector_survives_its_file_with_its_settings(tmp_path, tiny):
    vector = drawn(0, layers=(10, 2), model=tiny, settings={"style": "chat", "n": 4})
    loaded = SteeringVector.load(vector.save(tmp_path / "v" / "kind.safetensors"))
    assert_same(loaded, SteeringVector(sorted(vector.items())))
    assert loaded.settings == {"style": "chat", "n": "4"} and loaded.model is None
    with pytest.raises(ValueError, match="model"):
        loaded.steer("Why?")
    with pytest.raises(FileNotFoundError, match="nothing"):
        SteeringVector.load(tmp_path / "nothing.safetensors")


def family(shift=0.0, **settings):
    vectors = {
        user: {16: torch.full((3,), value + shift), 9: torch.arange(3.0)}
        for user, value in (("u2", 2.0), ("a/b", 1.0))
    }
    return VectorFamily(**{"name": "own words", "vectors": vectors, "vector_user": "own", **settings})


def test_a_family_survives_its_file_with_all_that_it_is(tmp_path):
    loaded, settings = load_family(save_family(tmp_path / "own", family(unit="residual"), {"rank": 3}))
    assert settings == {"rank": 3}
    named = (loaded.name, loaded.vector_user, loaded.control, loaded.unit)
    assert named == ("own words", "own", "", "residual")
    assert list(loaded.vectors["u2"]) == [9, 16]
    # The digest is of all users' numbers and of nothing else.
    backwards = dict(reversed(family().vectors.items()))
    assert loaded.digest == family(vectors=backwards, name="other", control="shuffled_profile").digest
    swapped = dict(zip(family().vectors, backwards.values(), strict=True))
    assert len({loaded.digest, family(0.1).digest, family(vectors=swapped).digest}) == 3


def test_families_of_a_folder_are_read_together_and_users_may_share_a_tensor(tmp_path):
    shared = {1: torch.ones(2)}
    save_family(tmp_path / "x.safetensors", family(vectors={"a": shared, "b": shared}), {})
    save_family(tmp_path / "y.safetensors", VectorFamily("population", {"": shared}), {})
    assert [one.name for one in load_families(tmp_path)] == ["population", "own words"]
    assert load_families(tmp_path)[0].of("anybody")[1].tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"'b' .*\[2\].*\[1\]"):
        uneven = {"a": shared, "b": {2: torch.ones(2)}}
        save_family(tmp_path / "z.safetensors", family(vectors=uneven), {})


def test_the_control_vector_file_is_what_llama_cpp_and_repeng_read(tmp_path):
    vectors = drawn(0, layers=(3, 2))
    reader = gguf.GGUFReader(vectors.to_gguf(tmp_path / "v" / "a.gguf"))
    assert reader.get_field("general.architecture").contents() == "controlvector"
    assert reader.get_field("controlvector.model_hint").contents() == "llama"
    assert reader.get_field("controlvector.layer_count").contents() == 2
    assert [tensor.name for tensor in reader.tensors] == ["direction.2", "direction.3"]
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}
    assert np.array_equal(reader.tensors[1].data, vectors[3].float().numpy())
    for layer, value in ((0, 1.0), (5, torch.inf)):  # which such a file cannot express
        with pytest.raises(ValueError, match=f"layer {layer}"):
            SteeringVector({layer: torch.full((4,), value)}).to_gguf(tmp_path / "b.gguf")
    assert not (tmp_path / "b.gguf").exists()


PROMPTS = ["You are", "Tell me a longer story of", "x"]


def generated(frozen, prompts, n, **settings):
    """Texts by plain transformers code: one batch, padded on the left, greedy."""
    ids = [frozen.tokenizer(prompt).input_ids for prompt in prompts]
    longest = max(map(len, ids))
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in ids])
    ids = torch.tensor([[0] * (longest - len(one)) + one for one in ids])
    settings = {"max_new_tokens": n, "do_sample": False, "pad_token_id": 0, **settings}
    answers = frozen.model.generate(input_ids=ids, attention_mask=mask, **settings)[:, longest:]
    return frozen.tokenizer.batch_decode(answers, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["embedded", "Llama 3", "Gemma 3", "GPT-2"])
def test_transformers_own_generate_under_the_vector_gives_the_decoders_answers(name):
    frozen = load_model() if name == "embedded" else architecture(name)
    vector = SteeringVector.from_pairs(frozen, ["so very kind", "well done"], ["you fool!", "go away"])
    plain = generated(frozen, PROMPTS, 8)
    for settings in ({"alpha": 4.0}, {"alpha": -2.0, "unit": "residual", "positions": "generation"}):
        with vector.apply(**settings):
            texts = generated(frozen, PROMPTS, 8)
        answers = vector.steer(PROMPTS, max_new_tokens=8, **settings)
        assert texts == answers.text.tolist()
        assert texts != plain
    assert generated(frozen, PROMPTS, 8) == plain


@pytest.mark.parametrize("positions", ["all", "prompt", "first_k:2"])
def test_beams_and_a_missing_cache_of_generate_change_nothing_of_what_is_steered(tiny, positions):
    with (drawn(0, model=tiny) * 3).apply(positions=positions):
        for settings in ({}, {"num_beams": 2}):
            cached = generated(tiny, PROMPTS, 6, **settings)
            assert generated(tiny, PROMPTS, 6, use_cache=False, **settings) == cached
