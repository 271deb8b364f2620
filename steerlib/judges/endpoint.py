"""A judge behind an OpenAI-compatible endpoint."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from itertools import repeat
from json import JSONDecodeError
from typing import Any

from steerlib.judges.base import PROMPTS, Item, Scores, framed, instructions, prompt_hash, reply_scores

JSON = {"type": "json_object"}
REQUEST: dict[str, Any] = {"temperature": 0.0, "max_completion_tokens": 256, "response_format": JSON}
EXAMPLE = ("How do I bake bread?", "Mix flour, water, salt and yeast.")
TRIES = 3  # how often a question is asked whose reply cannot be read
SECONDS = 60.0  # for one reply
RETRIES = 5  # of the client, where a server is busy or fails, after growing pauses


def question(item: Item, dimension: str) -> list[dict[str, str]]:
    """The conversation that asks for a rating of each answer of an item from 1 to 100, in JSON."""
    system = f"{instructions(dimension)}\n\n{PROMPTS['scale']}\n\n{PROMPTS['frame']}"
    user = f"{framed(item)}\n\n{PROMPTS['requests'][len(item) - 1]}"
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


class EndpointJudge:
    """A chat model behind an OpenAI-compatible endpoint, asked for a score from 1 to 100 in JSON.

    A reply that cannot be read is shown to the model with the request to mend it, three times in all; then the score
    is missing. So it is where the server refuses an item (400, 422) or is too slow, unless it never answered anything.

    Args:
        base_url: address; by default OPENAI_BASE_URL of the environment, else OpenAI's own.
        key_variable: environment variable that holds the key; None for a server that wants none.
        workers: questions under way at once.
        request: changes to the parameters of each request (`REQUEST`); None leaves one out, for instance
            {"temperature": None, "max_completion_tokens": None, "max_tokens": 512}.
        price_in, price_out: dollars per million tokens, for the estimate.

    Raises ImportError without the openai client, KeyError where the variable is absent or empty.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        key_variable: str | None = "OPENAI_API_KEY",
        workers: int = 8,
        request: Mapping[str, Any] | None = None,
        price_in: float | None = None,
        price_out: float | None = None,
    ) -> None:
        if find_spec("openai") is None:
            raise ImportError("a judge behind an endpoint needs one more package: pip install openai")
        self._openai: Any = import_module("openai")
        self._key = os.environ.get(key_variable, "").strip() if key_variable else ""
        if key_variable and not self._key:
            raise KeyError(f"the endpoint's key is read from the environment, which has no {key_variable}")
        settings = {"base_url": base_url, "timeout": SECONDS, "max_retries": RETRIES}
        self._client = self._openai.OpenAI(api_key=self._key or "none", **settings)
        self.model, self.workers, self.prices = model, workers, (price_in, price_out)
        changed = {**REQUEST, **(request or {})}
        self._request = {name: value for name, value in changed.items() if value is not None}
        self.id = f"endpoint:{model}@{self._client.base_url.netloc.decode()}:{prompt_hash(self._request)}"
        self._answered, self._refused = False, ""

    def rate(self, items: Sequence[Item], dimension: str) -> list[Scores | None]:
        """Scores from 1 to 100, None where no reply could be read; ConnectionError where the server does not serve."""
        with ThreadPoolExecutor(self.workers) as pool:
            # `map` cancels the questions that wait where one fails.
            found = list(pool.map(self._ask, items, repeat(dimension)))
        if self._refused and not self._answered:
            raise ConnectionError(f"{self.id} has answered nothing so far: {self._refused}")
        return found

    def spend(self, items: Sequence[Item], dimension: str) -> str:
        """Estimate of calls, tokens (four characters each, every reply as long as it may be) and dollars."""
        turns = [turn["content"] for item in items for turn in question(item, dimension)]
        tokens_in = sum(-(-len(text) // 4) + 4 for text in turns)
        longest = self._request.get("max_completion_tokens") or self._request.get("max_tokens") or 0
        tokens_out, (price_in, price_out) = longest * len(items), self.prices
        price = "price not known (price_in, price_out: dollars per million tokens)"
        if price_in is not None and price_out is not None:
            price = f"at most about ${(tokens_in * price_in + tokens_out * price_out) / 1e6:,.2f}"
        return (
            f"judge {self.id}: {len(items):,} calls, about {tokens_in:,} input tokens and at most"
            f" {tokens_out:,} output tokens, {price}; {TRIES} times that if no reply can be read"
        )

    def try_once(self) -> None:
        """Ask one question once; ConnectionError where no reply comes within five seconds."""
        hasty = self._client.with_options(timeout=min(SECONDS, 5.0), max_retries=0)
        if self._reply(question(EXAMPLE, "harmlessness"), hasty) is None:
            raise ConnectionError(f"{self.id}: {self._refused}")

    def _ask(self, item: Item, dimension: str) -> Scores | None:
        asked = turns = question(item, dimension)
        for _ in range(TRIES):
            reply = self._reply(turns, self._client)
            if reply is None:
                return None
            if scores := reply_scores(reply, PROMPTS["keys"][len(item) - 1]):
                return scores
            shown = {"role": "assistant", "content": reply[:500] or "(nothing)"}
            turns = [*asked, shown, {"role": "user", "content": PROMPTS["again"]}]
        return None

    def _reply(self, turns: list[dict[str, str]], client: Any) -> str | None:
        """The reply to one conversation; None where the server refuses this one or is too slow over it."""
        api = self._openai
        try:
            came = client.chat.completions.create(model=self.model, messages=turns, **self._request)
            content = came.choices[0].message.content
        except (api.APITimeoutError, api.BadRequestError, api.UnprocessableEntityError) as failure:
            self._refused = self._said(failure)
            return None
        except api.OpenAIError as failure:
            # Not "from failure": it carries the request, and with it the key.
            raise ConnectionError(f"{self.id}: {self._said(failure)}") from None
        except (AttributeError, IndexError, TypeError, JSONDecodeError):
            self._refused = "what it sends is no chat completion; is the address right?"
            return None
        self._answered = True
        return content or ""

    def _said(self, failure: object) -> str:
        """The failure's message in one line, without the key even where the server repeats it."""
        text = str(failure).replace(self._key, "[key]") if self._key else str(failure)
        return " ".join(text.split())[:300]
