"""The runner: a flat params file through the notebooks in order; checked first, resumable."""

from steerlib.runner.parameters import BadInput, Parameter, check_params, notebook_parameters, read_params
from steerlib.runner.study import Study, plan, run_study

__all__ = [
    "BadInput",
    "Parameter",
    "Study",
    "check_params",
    "notebook_parameters",
    "plan",
    "read_params",
    "run_study",
]
