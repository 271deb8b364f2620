"""The alpha explorer as widgets. Every callback takes its state from the widgets, none keeps a copy."""

import asyncio
import time
from typing import Any

import ipywidgets as w
import pandas as pd

from steerlib.explorer.page import LiveCurves, answers_html, note_html, summary
from steerlib.explorer.session import TYPED, Answers, Explorer
from steerlib.figures.style import label
from steerlib.reading import read_history
from steerlib.toxicity import ATTRIBUTES

PATIENCE = 0.3  # seconds without another change before decoding starts
LONGEST_ANSWER = 256
SHOWN = 80  # characters of a prompt in the list


class AlphaExplorer(w.VBox):
    """Prompt, category, method and an alpha slider; base and steered answer side by side.

    All answers of a setting are decoded at once, after which the slider only looks them up: any alpha for the logit
    rules, the nearest of the grid otherwise. Show it, then call `decode` for the first answers, so that the progress
    is seen.

    Args:
        explorer: decodes and keeps the answers.
        prompts: the prompts to choose from, of `run_prompts`; the first is shown first.
    """

    def __init__(self, explorer: Explorer, prompts: pd.DataFrame) -> None:
        self.explorer, self.prompts = explorer, prompts.set_index("prompt_id")
        self.answers: Answers | None = None
        self._waiting: asyncio.Task | None = None
        wide, style, small = {"width": "99%"}, {"description_width": "5.5em"}, {"description_width": "4em"}
        listed = [(_short(prompt), key) for key, prompt in self.prompts["prompt"].items()]
        first = self.prompts.iloc[0]
        self.prompt = _labelled(
            w.Dropdown, "Prompt", style, wide, options=[*listed, ("(typed below)", TYPED)]
        )
        self.text = _labelled(
            w.Textarea, "Text", style, wide, value=first["prompt"], rows=2, continuous_update=False
        )
        categories = [(label(name), name) for name in ATTRIBUTES]
        self.category = _labelled(w.Dropdown, "Category", style, options=categories, value=first["category"])
        methods = [(f"{label(name)} {vector}".strip(), (name, vector)) for name, vector in explorer.methods]
        self.method = _labelled(
            w.Dropdown, "Method", style, options=methods, value=("expert_anti_expert", "")
        )
        self.seed = _labelled(w.BoundedIntText, "Seed", small, {"width": "9em"}, min=0, max=10_000)
        limit = {"value": explorer.sampling.max_new_tokens, "min": 1, "max": LONGEST_ANSWER}
        self.tokens = _labelled(w.BoundedIntText, "Tokens", small, {"width": "10em"}, **limit)
        self.greedy = w.Checkbox(description="greedy", indent=False, layout={"width": "6em"})
        self.button = w.Button(description="Decode", button_style="primary", tooltip="answers to the text")
        self.bar = w.IntProgress(description="decoding…", layout={"width": "22em", "visibility": "hidden"})
        self.alpha = _labelled(
            w.FloatSlider, "alpha", style, {"width": "70%"}, value=1.0, readout_format=".2f"
        )
        self._fit_slider()
        self.note, self.page, self.curves = w.HTML(), w.HTML(layout={"min_height": "15em"}), LiveCurves()
        self.figure = w.VBox([self.curves.widget], layout={"width": "99%", "visibility": "hidden"})
        wrapped, middle = {"flex_flow": "row wrap"}, {"align_items": "center"}
        settings = w.HBox([self.category, self.method, self.seed, self.tokens, self.greedy], layout=wrapped)
        below = w.HBox([self.button, self.note, self.bar], layout=middle)
        super().__init__([self.prompt, self.text, settings, below, self.alpha, self.page, self.figure])
        self.prompt.observe(self._on_prompt, "value")
        self.text.observe(self._on_text, "value")
        self.method.observe(self._on_method, "value")
        for control in (self.category, self.seed, self.tokens, self.greedy):
            control.observe(self._request, "value")
        self.button.on_click(self._request)
        self.alpha.observe(self._show, "value")

    def __repr__(self) -> str:
        return "The alpha explorer: a live widget, to be used in JupyterLab (make lab)."

    def _on_prompt(self, change: dict) -> None:
        if change["new"] == TYPED:
            return
        chosen = self.prompts.loc[change["new"]]
        self.text.value, self.category.value = chosen["prompt"], chosen["category"]
        self._request()

    def _on_text(self, change: dict) -> None:
        """Words of one's own are no longer the listed prompt; they wait for the button."""
        if change["new"] != self.prompts["prompt"].get(self.prompt.value):
            self.prompt.value = TYPED
            self.note.value = note_html("the text has changed: press Decode")

    def _on_method(self, _: object) -> None:
        self.answers = None  # they are of another range
        self._fit_slider()
        self._request()

    def _fit_slider(self) -> None:
        self.alpha.max, self.alpha.step = self.explorer.reach(self.method.value[0])

    def settings(self) -> dict:
        """What the widgets ask for, as keywords of `Explorer.answers`."""
        method, vector = self.method.value
        return {
            "prompt": self.text.value,
            "prompt_id": self.prompt.value,
            "history": self.prompts["history"].get(self.prompt.value, ""),
            "category": self.category.value,
            "method": method,
            "vector": vector,
            "seed": self.seed.value,
            "greedy": self.greedy.value,
            "max_new_tokens": self.tokens.value,
        }

    def _request(self, _: object = None) -> None:
        """Decode after the last of several quick changes; at once where no event loop runs."""
        if self._waiting:
            self._waiting.cancel()
        try:
            self._waiting = asyncio.get_running_loop().create_task(self._decode_soon())
        except RuntimeError:
            self.decode()

    async def _decode_soon(self) -> None:
        await asyncio.sleep(PATIENCE)
        self.decode()

    def decode(self) -> None:
        """Decode all answers to what the widgets ask for and show them; an error is shown in one line."""
        started = time.perf_counter()
        self.page.value = f'<div style="opacity:.3">{self.page.value}</div>'  # of the settings before
        self.answers, self.note.value, self.bar.value = None, "", 0
        self.bar.layout.visibility = "visible"
        try:
            settings = self.settings()
            turns = len(read_history(settings["history"]))
            self.answers = self.explorer.answers(**settings, progress=self._progress)
        except (ValueError, RuntimeError) as failure:  # RuntimeError: out of memory
            self.page.value, self.figure.layout.visibility = "", "hidden"
            self.note.value = note_html(" ".join(str(failure).split()), error=True)
            return
        finally:
            self.bar.layout.visibility = "hidden"
        line = summary(self.answers, time.perf_counter() - started)
        self.note.value = note_html(line + (f"; after {turns} earlier turns" if turns else ""))
        self.curves.draw(self.answers, self.category.value)
        self.figure.layout.visibility = "visible"
        self._show()

    def _progress(self, done: int, most: int) -> None:
        self.bar.max, self.bar.value = most, done

    def _show(self, _: object = None) -> None:
        """Look the slider's answer up."""
        if self.answers is not None:
            alpha, category = self.alpha.value, self.category.value
            self.page.value = answers_html(self.answers, alpha, category=category)
            self.curves.mark(self.answers, alpha, category)


def _labelled(kind: type, description: str, style: dict, layout: dict | None = None, **settings: Any) -> Any:
    return kind(description=description, style=style, layout=layout or {}, **settings)


def _short(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"
