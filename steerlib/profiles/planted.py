"""How often each estimator finds the category that a synthetic user was made with."""

import pandas as pd
from scipy.stats import binomtest

from steerlib.profiles.ratings import DEMO
from steerlib.profiles.sensitivity import ESTIMATORS, percentiles, primary_category, sensitivities


def planted_recovery(ratings: pd.DataFrame) -> pd.DataFrame:
    """Share of the demo's users whose planted category each estimator finds; chance is 1/6.

    Args:
        ratings: rated responses of demo users with the six attributes, those the profile is fitted on.

    Returns:
        One row an estimator: users, share, and the exact 95 % binomial interval low, high.
    """
    survey = pd.read_json(DEMO / "survey.jsonl", lines=True)
    planted = survey.set_index("user_id").planted_category
    rows = []
    for estimator in ESTIMATORS:
        s = sensitivities(ratings, estimator)
        found = primary_category(percentiles(s), s)
        hits = int((planted.reindex(found.index) == found).sum())
        interval = binomtest(hits, len(found)).proportion_ci(0.95)
        row = {"estimator": estimator, "users": len(found), "share": hits / len(found)}
        rows.append({**row, "low": interval.low, "high": interval.high})
    return pd.DataFrame(rows).set_index("estimator").round(2)
