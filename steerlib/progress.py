"""Progress of long work: a bar where somebody looks, a file that the runner shows where nobody does."""

import os

from tqdm import tqdm

PROGRESS_FILE = "STEER_PROGRESS"
"""Environment variable that names the file; the runner sets it for the kernels it starts."""


def progress_bar(total: int, *, what: str, unit: str, done: int = 0) -> tqdm:
    """A bar with count, rate and time left.

    Args:
        total: how many there are.
        what: the work, shown before the bar.
        unit: one of them.
        done: how many were finished by an earlier call.
    """
    path = os.environ.get(PROGRESS_FILE)
    stream = open(path, "w", buffering=1) if path else None  # noqa: SIM115  (lives as long as the bar)
    return tqdm(total=total, initial=done, desc=what, unit=unit, file=stream, mininterval=1, ncols=80)
