"""What tells the curve of one kind of arm over alpha from that of another, and which arms stand at one temperature."""

import pandas as pd

from steerlib.generation.grid import SHUFFLED_FAMILY

SETTING = ("method", "profile", "vector", "variant")
"""What arms of one curve share: the rule, whose signal, which vector, and what else sets them apart, in words."""

WITHOUT_STRENGTH = ("base", "prompt_only", "instructed", "aligner")
"""Methods that have no alpha to choose."""


def setting(of: pd.DataFrame | pd.Series) -> list[str]:
    """Those of the settings that a table (or a row of it) has, in their order."""
    return [column for column in SETTING if column in of]


def family(vector: pd.Series) -> pd.Series:
    """Name of each vector without its hash; a family that gives each user another user's is named as that family."""
    return vector.str.split("@").str[0].str.removesuffix(SHUFFLED_FAMILY)


def first_temperature(arms: pd.DataFrame) -> pd.DataFrame:
    """Arms that are sampled as the first base of the table is: the study's own, where it was run at two temperatures.

    Arms of a second temperature may have been run with other seeds (greedy decoding has one) and are compared with
    their twins alone, see `quality_by_sampling`.

    Args:
        arms: the arms table.

    Raises:
        ValueError: there is no base.
    """
    base = arms[arms["method"] == "base"]
    if base.empty:
        raise ValueError("the arms have no base")
    return arms[arms["temperature"] == base["temperature"].iloc[0]].reset_index(drop=True)
