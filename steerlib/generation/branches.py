"""Trained branches: a model of its own for the expert or the anti-expert, in place of a context.

Such a branch reads the plain prompt, as the base does. Arms name the models that they read.
"""

import re
from collections.abc import Mapping

import pandas as pd

from steerlib.models import FrozenModel

BranchModels = Mapping[str, FrozenModel]
TRAINABLE = ("expert", "anti")


def branches_text(names: Mapping[str, str]) -> str:
    """The column `branches` of an arm: "expert=NAME, anti=NAME", empty where every branch is a context."""
    return ", ".join(f"{branch}={names[branch]}" for branch in TRAINABLE if branch in names)


def branch_names(text: str) -> dict[str, str]:
    """The inverse of `branches_text`: name of the model by branch."""
    parts = re.split(rf"(?:^|, )({'|'.join(TRAINABLE)})=", text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def owner(frozen: FrozenModel, models: BranchModels, branch: str) -> str:
    """Where a branch's weights are: "" for the frozen model itself, else the first branch with that model.

    Branches of one model are rows of one forward pass, and equal ones are read once.
    """
    named = {"": frozen, **models}
    return next(name for name, one in named.items() if one.model is models[branch].model)


def check_branch_models(frozen: FrozenModel, arms: pd.DataFrame, models: BranchModels) -> None:
    """Refuse branch models that cannot stand beside the frozen model, or that are not those the arms name.

    Args:
        frozen: the base.
        arms: the arms table.
        models: by branch, "expert" or "anti".

    Raises:
        ValueError: no such branch, another vocabulary, number of logits or device; an arm whose model is missing,
            or a model that no arm reads.
    """
    for branch, model in models.items():
        if branch not in TRAINABLE:
            raise ValueError(f"branch {branch!r} is none of {', '.join(TRAINABLE)}")
        _check_beside(frozen, model, f"the {branch} model {model.name!r}")
    read = {}
    for arm_id, text in zip(arms["arm_id"], arms["branches"], strict=True):
        for branch, name in branch_names(text).items():
            read[branch] = name
            given = models[branch].name if branch in models else None
            if given != name:
                there = "none is given" if given is None else f"{given!r} is given"
                raise ValueError(f"arm {arm_id} reads the {branch} model {name!r}; {there} in branch_models")
    for branch in models.keys() - read:
        raise ValueError(
            f"no arm reads the {branch} model {models[branch].name!r}; name it in their branches"
        )


def _check_beside(frozen: FrozenModel, model: FrozenModel, what: str) -> None:
    base, other = frozen.tokenizer.get_vocab(), model.tokenizer.get_vocab()
    if base != other:
        different = [t for t in base.keys() | other.keys() if base.get(t) != other.get(t)]
        token = min(different, key=lambda t: (min(v[t] for v in (base, other) if t in v), t))
        raise ValueError(
            f"{what} has another vocabulary than the base {frozen.name!r}: token {token!r} is "
            f"{other.get(token, 'missing')} there and {base.get(token, 'missing')} in the base"
        )
    widths = [one.model.config.get_text_config().vocab_size for one in (model, frozen)]
    if widths[0] != widths[1]:
        raise ValueError(
            f"{what} has {widths[0]} logits, the base {widths[1]}: the vocabularies are equal but padded "
            "differently; bring one to the other's size with resize_token_embeddings"
        )
    if model.device != frozen.device:
        raise ValueError(f"{what} is on {model.device}, the base on {frozen.device}: load both on one device")
