"""Room of notebook 02: contrast pairs, the residual stream, steering vectors and their files."""

from steerlib.vectors.arithmetic import LayerVectors
from steerlib.vectors.basis import Basis, category_basis, difference_basis
from steerlib.vectors.categories import (
    category_differences,
    dislike_weighted,
    dislike_weights,
    mixtures,
)
from steerlib.vectors.composed import describe_composed, personal_vectors, rescaled, shuffled_users
from steerlib.vectors.continuations import continuation_residuals
from steerlib.vectors.coordinates import (
    UserCoordinates,
    coordinate_margins,
    fit_coordinates,
    preference_margins,
)
from steerlib.vectors.directions import (
    cosine,
    default_layers,
    describe_vectors,
    mean_difference,
    mean_differences,
    random_vectors,
)
from steerlib.vectors.doses import doses, residual_norms
from steerlib.vectors.features import sae_direction
from steerlib.vectors.files import load_named_vectors, load_vectors, save_vectors
from steerlib.vectors.gates import (
    Threshold,
    choose_threshold,
    prompt_projections,
)
from steerlib.vectors.gguf import vectors_from_gguf, vectors_to_gguf
from steerlib.vectors.pair_files import read_pairs
from steerlib.vectors.pairs import pair_residuals, pairs_from_ratings
from steerlib.vectors.personal_files import load_personal_vectors, save_personal_vectors
from steerlib.vectors.prompt_residuals import prompt_residuals
from steerlib.vectors.recorded import kept_pair_residuals, pair_tokens
from steerlib.vectors.residual import (
    add_to_residual,
    check_layers,
    record_residual,
    residual_hooks,
    steered_positions,
)
from steerlib.vectors.shrinkage import Setting, choose_rank_and_shrinkage, split_half_coordinates

__all__ = [
    "Basis",
    "LayerVectors",
    "Setting",
    "Threshold",
    "UserCoordinates",
    "add_to_residual",
    "category_basis",
    "category_differences",
    "check_layers",
    "choose_rank_and_shrinkage",
    "choose_threshold",
    "continuation_residuals",
    "coordinate_margins",
    "cosine",
    "default_layers",
    "describe_composed",
    "describe_vectors",
    "difference_basis",
    "dislike_weighted",
    "dislike_weights",
    "doses",
    "fit_coordinates",
    "kept_pair_residuals",
    "load_named_vectors",
    "load_personal_vectors",
    "load_vectors",
    "mean_difference",
    "mean_differences",
    "mixtures",
    "pair_residuals",
    "pair_tokens",
    "pairs_from_ratings",
    "personal_vectors",
    "preference_margins",
    "prompt_projections",
    "prompt_residuals",
    "random_vectors",
    "read_pairs",
    "record_residual",
    "rescaled",
    "residual_hooks",
    "residual_norms",
    "sae_direction",
    "save_personal_vectors",
    "save_vectors",
    "shuffled_users",
    "split_half_coordinates",
    "steered_positions",
    "vectors_from_gguf",
    "vectors_to_gguf",
]
