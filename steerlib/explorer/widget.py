"""The alpha explorer as widgets: controls here, the view in `view.js`, decoding in a thread that can be stopped."""

import contextvars
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

import anywidget
import ipywidgets as w
import pandas as pd
import traitlets
from IPython.core.getipython import get_ipython

from steerlib.explorer.page import VIEW, page_data, saved_page, summary
from steerlib.explorer.questions import TYPED, Answers, Question
from steerlib.explorer.session import Explorer
from steerlib.figures.style import label
from steerlib.rules import RULES
from steerlib.toxicity import ATTRIBUTES

PATIENCE = 0.25  # seconds without another change before decoding starts
LONGEST_ANSWER = 256
SHOWN = 80  # characters of a prompt in the list
UNITS = [("of the vector", "vector"), ("of the residual's norm", "residual")]


class _Stopped(Exception):
    """Another question was asked, or this one was cancelled."""


class View(anywidget.AnyWidget):
    """Slider, answers, curves and scores of `page_data`; it needs no kernel to move."""

    _esm = f"{VIEW}\nexport default {{ render }};"
    data = traitlets.Dict().tag(sync=True)
    start = traitlets.Float(1.0).tag(sync=True)
    stale = traitlets.Bool(False).tag(sync=True)
    streamed = traitlets.Unicode("").tag(sync=True)


class AlphaExplorer(w.VBox):
    """Prompt, method and an alpha slider; base and steered answer side by side.

    A question is decoded in a thread: the base's answer is shown first, then the one at the slider's alpha, then all.
    A newer question replaces an older one; Cancel and the kernel's interrupt stop it. `prompts` are of `run_prompts`,
    the first is asked first; `ranges`, of `run_ranges`, are marked on the curves.
    """

    def __init__(self, explorer: Explorer, prompts: pd.DataFrame, *, ranges: Mapping | None = None) -> None:
        self.explorer, self.prompts, self.ranges = explorer, prompts.set_index("prompt_id"), ranges or {}
        self.answers: Answers | None = None
        self.alpha, self._lock = 1.0, threading.RLock()
        self._asked, self._thread = 0, threading.Thread()
        first, last = prompts.iloc[0], explorer.frozen.n_layers - 1
        listed = [(" ".join(prompt.split())[:SHOWN], key) for key, prompt in self.prompts["prompt"].items()]
        self.prompt = _named(w.Dropdown, "Prompt", "99%", options=[*listed, ("(typed below)", TYPED)])
        self.text = _named(w.Textarea, "Text", "99%", value=first["prompt"], rows=2)
        methods = [(RULES[name].label, name) for name in explorer.methods]
        self.method = _named(w.Dropdown, "Method", options=methods, value="expert_anti_expert")
        self.profile = _named(w.Dropdown, "Profile", options=["chosen category", "own", "shuffled"])
        attributes = [(label(name), name) for name in ATTRIBUTES]
        self.category = _named(w.Dropdown, "Category", options=attributes, value=first["category"])
        self.vector = _named(w.Dropdown, "Vector", options=[*explorer.vectors] or ["none"])
        self.vector_alpha = _named(w.FloatSlider, "Vector alpha", "26em", min=-1.0, max=1.0, step=0.05)
        self.layers = _named(w.IntRangeSlider, "Layers", min=0, max=last, value=(0, last))
        self.unit = _named(w.Dropdown, "Unit", options=UNITS)
        self.seed = _named(w.BoundedIntText, "Seed", "11em", min=0, max=10_000)
        limit = explorer.sampling.max_new_tokens
        self.tokens = _named(w.BoundedIntText, "Tokens", "11em", value=limit, min=1, max=LONGEST_ANSWER)
        self.greedy = w.Checkbox(description="greedy", indent=False, layout={"width": "6em"})
        self.button = w.Button(description="Decode", button_style="primary", layout={"width": "7em"})
        self.stop = w.Button(description="Cancel", layout={"width": "7em"})
        self.state, self.view = w.Label("idle"), View()
        self.state.add_class("explorer-state")
        self.text.add_class("explorer-text")
        settings = [self.method, self.profile, self.category, self.seed, self.tokens, self.greedy]
        of_vector = [self.vector, self.layers, self.unit, self.vector_alpha]
        above, self.of_vector, below = (
            w.HBox(controls, layout={"flex_flow": "row wrap", "align_items": "center"})
            for controls in (settings, of_vector, [self.button, self.stop, self.state])
        )
        super().__init__([self.prompt, self.text, above, self.of_vector, below, self.view])
        self.prompt.observe(self._on_prompt, "value")
        self.text.observe(self._on_text, "value")
        self.profile.observe(self._on_profile, "value")
        self.method.observe(self._fit, "value")
        for control in (*settings, *of_vector):
            control.observe(self.ask, "value")
        self.button.on_click(self.ask)
        self.stop.on_click(self.cancel)
        self.view.on_msg(self._on_message)
        self._fit()
        if kernel := getattr(get_ipython(), "kernel", None):
            # What ipykernel puts back after each cell; between cells it would ignore an interrupt.
            kernel.saved_sigint_handler = lambda *_: self.cancel()

    def __repr__(self) -> str:
        return "The alpha explorer: a live widget, to be used in JupyterLab (make lab)."

    def _on_prompt(self, change: dict) -> None:
        if change["new"] != TYPED:
            self.text.value = self.prompts["prompt"][change["new"]]
            self._on_profile()
            self.ask()

    def _on_text(self, change: dict) -> None:
        """Words of one's own are no longer the listed prompt; what is shown is dimmed, and they wait for the button."""
        if change["new"] != self.prompts["prompt"].get(self.prompt.value):
            self.cancel("the text has changed: press Decode")
            self.view.stale = True
            self.prompt.value = TYPED

    def _on_profile(self, _: object = None) -> None:
        """A person's profile names the category; without one a listed prompt's own is only a first choice."""
        self.category.disabled = self.profile.value != "chosen category"
        column = "shuffled_category" if self.profile.value == "shuffled" else "category"
        self.category.value = self.prompts[column].get(self.prompt.value) or self.category.value

    def _fit(self, _: object = None) -> None:
        """Show the controls that the method reads."""
        acts_on = RULES[self.method.value].acts_on
        fits = bool(self.explorer.vectors) and acts_on in ("residual", "logits")
        self.of_vector.layout.display = "" if fits else "none"
        self.vector_alpha.layout.display = "" if acts_on == "logits" else "none"

    def question(self) -> Question:
        """What the widgets ask for."""
        shown = self.prompts.loc[self.prompt.value] if self.prompt.value != TYPED else {}
        beside = RULES[self.method.value].acts_on == "logits" and bool(self.explorer.vectors)
        family = self.explorer.vectors.get(self.vector.value)
        same = ("method", "category", "layers", "unit", "seed", "greedy")
        return Question(
            self.text.value,
            vector=self.vector.value if family else "",
            vector_alpha=self.vector_alpha.value if beside else 0.0,
            user=shown.get("user_id", "") if family and family.vector_user else "",
            max_new_tokens=self.tokens.value,
            prompt_id=self.prompt.value,
            history=shown.get("history", ""),
            **{name: getattr(self, name).value for name in same},
        )

    def question_of(self, prompt_id: str) -> Question:
        """The same of another prompt of the list, in that prompt's own category."""
        asked = self.prompts.loc[prompt_id, ["prompt", "history", "category"]]
        return replace(self.question(), prompt_id=prompt_id, **asked)

    def ask(self, _: object = None) -> None:
        """Decode what the widgets ask for, in a thread; whatever is being decoded stops."""
        self._asked += 1
        self.view.stale = True
        work = (self._decode, self._asked, self.question(), self.alpha)
        # A thread of its own for each question; the older ones end at the next module of the model.
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=work, daemon=True)
        self._thread.start()

    def cancel(self, why: object = "cancelled") -> None:
        """Stop what is being decoded; what is shown stays."""
        with self._lock:
            self._asked += 1
            self.view.streamed = ""
            self.state.value = why if isinstance(why, str) else "cancelled"

    def wait(self) -> None:
        """Until the latest question is answered; an interrupt of the waiting cell cancels it."""
        try:
            self._thread.join()
        except KeyboardInterrupt:
            self.cancel()
            raise

    def _decode(self, ticket: int, question: Question, alpha: float) -> None:
        def tell(state: str, text: str = "") -> None:
            """Say where we are, unless another question was asked meanwhile."""
            with self._lock:
                if ticket != self._asked:
                    raise _Stopped
                self.state.value, self.view.streamed = state, text

        def report(done: int, most: int, text: str) -> None:
            tell(f"decoding {done} of {most}", text)

        try:
            time.sleep(PATIENCE)
            estimate, started = self.explorer.estimate(question), time.perf_counter()
            tell(f"decoding, about {estimate.seconds:.0f} s and {estimate.needed / 1e9:.1f} GB")
            with closing(self.explorer.stages(question, alpha=alpha, report=report)) as stages:
                for answers in stages:
                    tell("decoding, an answer is there")
                    self.answers = answers
                    self.view.data, self.view.stale = self._data(), False
            tell(f"idle: {summary(answers, time.perf_counter() - started)}")
        except _Stopped:
            return
        except Exception as failure:  # whatever it is, the user must see it: no cell shows a thread's error
            with suppress(_Stopped):
                tell(f"failed: {' '.join(str(failure).split()) or type(failure).__name__}")

    def _data(self) -> dict:
        assert self.answers
        question = self.answers.question
        accepted = self.prompts["accepted"].get(question.prompt_id, "")
        chosen = self.ranges.get((question.method, question.key.vector))
        return page_data(self.answers, self.explorer, accepted=accepted, chosen=chosen, start=self.alpha)

    def _on_message(self, _: object, content: dict, __: object) -> None:
        """Of the view: where the slider rests, or that a page is wanted."""
        self.alpha = content.get("alpha", self.alpha)
        if content.get("save") and self.answers:
            self.view.send(saved_page([self._data()]))


def _named(kind: type, description: str, width: str = "19em", **settings: Any) -> Any:
    style, layout = {"description_width": "6.5em"}, {"width": width}
    return kind(description=description, style=style, layout=layout, **settings)
