"""Personalised steering of a frozen language model at decoding time: the library behind the notebooks.

The public surface is three lines each, on plain strings:

    from steerlib import SteeringVector, alpha_path, load_model, load_scorer, steer
    model = load_model()                                        # the embedded model; or a folder or hub id
    steer(model, "You worthless", expert="Be kind:", anti="Be cruel:", alpha=[0, 1, 2])
    vector = SteeringVector.from_pairs(model, preferred, dispreferred)
    vector.steer("You worthless", alpha=[-0.3, 0, 0.3])
    with vector.apply(model, alpha=0.3):
        model.model.generate(...)                               # any transformers code

Rooms, each importing only from those before it: models, embedded, reading, tables, rules, residual, decoding, profiles,
vectors, toxicity, judges, evaluation, figures, explorer, runner. A name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steerlib.decoding.steer import alpha_path, steer
    from steerlib.models import load_model
    from steerlib.toxicity import load_scorer
    from steerlib.vectors import SteeringVector

__all__ = ["SteeringVector", "alpha_path", "load_model", "load_scorer", "steer"]

ROOM_OF = {
    "SteeringVector": "vectors",
    "alpha_path": "decoding.steer",
    "load_model": "models",
    "load_scorer": "toxicity",
    "steer": "decoding.steer",
}


def __getattr__(name: str) -> Any:
    if name not in ROOM_OF:
        raise AttributeError(f"module 'steerlib' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"steerlib.{ROOM_OF[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
