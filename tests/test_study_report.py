import pandas as pd
from IPython.display import HTML

from steerlib.figures import study_report
from steerlib.tables import write_manifest

COLUMNS = [
    "arm_id",
    "method",
    "alpha",
    "profile",
    "family",
    "vector_user",
    "control",
    "variant",
    "split",
    "value",
    "low",
    "high",
    "n",
    "n_clusters",
]


def test_a_run_in_which_nothing_helped_on_dev_says_so_in_its_report(tmp_path):
    write_manifest(tmp_path, "04_evaluation", {"scorer": "s", "synthetic_questions": True}, seconds=1)
    report = study_report(tmp_path, effects=pd.DataFrame(columns=COLUMNS), examples=HTML("<p>answers</p>"))
    text = report.read_text()
    assert "there is no effect to report" in text
    assert "a small set of our own; they are not MMLU" in text
    assert "The ratings, users, prompts" not in text  # nothing said that the ratings are synthetic
