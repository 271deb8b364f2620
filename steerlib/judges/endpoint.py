"""A judge behind an OpenAI-compatible endpoint.

What asking an endpoint will cost, said before it is asked.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from json import JSONDecodeError
from typing import Any

from steerlib.judges.base import (
    KEYS,
    Answered,
    Compared,
    Pair,
    Scores,
    Spend,
    prompt_hash,
    question,
    reply_scores,
)

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English; other languages and code have more tokens."""


def estimated_tokens(conversations: Sequence[Sequence[dict[str, str]]]) -> int:
    """Tokens of the conversations by their length in characters, rounded up, a few for each turn's frame."""
    turns = [turn["content"] for conversation in conversations for turn in conversation]
    return sum(-(-len(text) // CHARACTERS_PER_TOKEN) + 4 for text in turns)


AGAIN = "That was not the JSON asked for. Reply with the JSON object alone."


class EndpointJudge:
    """A chat model behind an OpenAI-compatible endpoint, asked for a score from 1 to 100 in JSON.

    A busy or failing server (429, 5xx, no connection) is asked again by the client after a growing pause, or the
    one that the server names. A reply that cannot be read is shown to the model with the request to mend it, up to
    `tries` in all; then the score is missing. So it is where the server refuses an item (400, 422) or takes too
    long over it, unless it never answered anything: then the settings are wrong, and it is said so.

    Args:
        model: name of the model at the endpoint.
        base_url: address of the endpoint; by default OPENAI_BASE_URL of the environment, else OpenAI's own.
        key_variable: environment variable that holds the key, the only place it is taken from; None for a server
            that wants none. The key is sent to `base_url`: name a variable of its own for each server.
        timeout: seconds for one reply.
        max_retries: how often the client asks a failing server again.
        tries: how often a question is asked whose reply cannot be read.
        workers: questions under way at once.
        temperature: of the judge; None where the model takes no temperature.
        max_tokens: longest reply, the thoughts of a reasoning model counted.
        json_mode: ask the server to hold the model to JSON; switch it off where the server knows no such thing.
        price_in, price_out: dollars per million tokens, for the estimate.

    Attributes:
        id: model, server and a hash of prompts and settings.

    Raises:
        ImportError: the openai client is not installed.
        KeyError: the environment has no such variable, or it is empty.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key_variable: str | None = "OPENAI_API_KEY",
        timeout: float = 60.0,
        max_retries: int = 5,
        tries: int = 3,
        workers: int = 8,
        temperature: float | None = 0.0,
        max_tokens: int = 256,
        json_mode: bool = True,
        price_in: float | None = None,
        price_out: float | None = None,
    ) -> None:
        if min(tries, workers, max_tokens) < 1:
            raise ValueError(
                f"tries {tries}, workers {workers} and max_tokens {max_tokens} must be 1 or more"
            )
        if find_spec("openai") is None:
            raise ImportError("a judge behind an endpoint needs one more package: pip install openai")
        self._openai: Any = import_module("openai")
        self._key = _key(key_variable)
        self._client = self._openai.OpenAI(
            api_key=self._key or "none", base_url=base_url, timeout=timeout, max_retries=max_retries
        )
        self.model, self.tries, self.workers = model, tries, workers
        self.price_in, self.price_out = price_in, price_out
        self._settings: dict[str, Any] = {"max_completion_tokens": max_tokens}
        if temperature is not None:
            self._settings["temperature"] = temperature
        if json_mode:
            self._settings["response_format"] = {"type": "json_object"}
        self.server = self._client.base_url.netloc.decode()
        self.id = f"endpoint:{model}@{self.server}:{prompt_hash(self._settings, AGAIN)}"
        self._answered = False

    def __repr__(self) -> str:
        return f"EndpointJudge({self.id})"

    def rate(self, items: Sequence[Answered], dimension: str) -> list[float | None]:
        """Scores from 1 to 100, in the order of the items; None where no reply could be read."""
        return [scores[0] if scores else None for scores, _ in self.ask(items, dimension)]

    def compare(self, items: Sequence[Compared], dimension: str) -> list[Pair | None]:
        """Scores of both answers of each item, shown together; None where no reply could be read."""
        return [(scores[0], scores[1]) if scores else None for scores, _ in self.ask(items, dimension)]

    def ask(self, items: Sequence[tuple[str, ...]], dimension: str) -> list[tuple[Scores | None, int]]:
        """Scores of each item, one answer's or two's, and how often it was asked; `workers` at once.

        Raises:
            ConnectionError: the server cannot be reached, keeps failing, or turns the key or the model down.
        """
        refused: list[str] = []
        with ThreadPoolExecutor(self.workers) as pool:
            waiting = [pool.submit(self._ask, item, dimension, refused) for item in items]
            try:
                found = [future.result() for future in waiting]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if refused and not self._answered:
            raise ConnectionError(f"{self.id} has answered nothing so far: {refused[0]}")
        return found

    def spend(self, items: Sequence[tuple[str, ...]], dimension: str) -> Spend:
        """What asking about the items will take, each asked once."""
        return Spend(
            f"judge {self.model} at {self.server}",
            calls=len(items),
            input_tokens=estimated_tokens([question(item, dimension) for item in items]),
            output_tokens=self._settings["max_completion_tokens"] * len(items),
            price_in=self.price_in,
            price_out=self.price_out,
            tries=self.tries,
        )

    def _ask(self, item: tuple[str, ...], dimension: str, refused: list[str]) -> tuple[Scores | None, int]:
        """One question, asked until its reply can be read."""
        asked = turns = question(item, dimension)
        for tried in range(1, self.tries + 1):
            reply = self._reply(turns, refused)
            if reply is None:
                return None, tried
            scores = reply_scores(reply, KEYS[len(item)])
            if scores is not None:
                return scores, tried
            shown = {"role": "assistant", "content": reply[:500] or "(nothing)"}
            turns = [*asked, shown, {"role": "user", "content": AGAIN}]
        return None, self.tries

    def _reply(self, turns: list[dict[str, str]], refused: list[str]) -> str | None:
        """The reply to one conversation; None where the server refuses this one or is too slow over it."""
        one_item = (
            self._openai.APITimeoutError,
            self._openai.BadRequestError,
            self._openai.UnprocessableEntityError,
        )
        try:
            came = self._client.chat.completions.create(model=self.model, messages=turns, **self._settings)
            content = came.choices[0].message.content
        except one_item as failure:
            refused.append(self._said(failure))
            return None
        except self._openai.OpenAIError as failure:
            # Not "from failure": it carries the request, and with it the key.
            raise ConnectionError(f"{self.id}: {self._said(failure)}") from None
        except (AttributeError, IndexError, TypeError, JSONDecodeError):
            refused.append("what it sends is no chat completion; is the address right?")
            return None
        self._answered = True
        return content or ""

    def _said(self, failure: object) -> str:
        """What the server or the client said, in a line, without the key even where the server repeats it."""
        text = str(failure).replace(self._key, "[key]") if self._key else str(failure)
        return " ".join(text.split())[:300]


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise KeyError(f"the key of the endpoint is read from the environment, which has no {variable}")
    return key
