"""Room of notebook 02: contrast pairs, steering vectors for everybody and for one user, gates, files."""

# ruff: noqa: F401  (the names that notebooks use)

from steerlib.profiles.prompts import shuffled_users
from steerlib.residual import VectorFamily
from steerlib.vectors.coordinates import choose_rank_and_shrinkage, difference_basis, fit_coordinates
from steerlib.vectors.gates import choose_threshold, prompt_projections, relative_norms
from steerlib.vectors.pairs import continuation_residuals, pair_residuals, pairs_from_ratings, read_pairs
from steerlib.vectors.personal import (
    category_differences,
    describe_composed,
    dislike_weighted,
    personal_vectors,
    rescaled,
)
from steerlib.vectors.steering_vector import (
    SteeringVector,
    cosine,
    default_layers,
    describe_vectors,
    load_families,
    random_vectors,
    sae_direction,
    save_family,
)
