"""Room of notebook 06: the alpha explorer."""

from steerlib.explorer.page import answers_html as answers_html
from steerlib.explorer.page import answers_table as answers_table
from steerlib.explorer.page import curves_figure as curves_figure
from steerlib.explorer.session import Answers as Answers
from steerlib.explorer.session import Explorer as Explorer
from steerlib.explorer.session import run_prompts as run_prompts
from steerlib.explorer.session import run_vectors as run_vectors
from steerlib.explorer.widget import AlphaExplorer as AlphaExplorer
