"""A judge behind an endpoint, against a server on this machine that answers well, badly, late or not at all."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier
from traceback import format_exception
from typing import Any

import pandas as pd
import pytest
from local_server import Reply, Server, serving

from steerlib.__main__ import main
from steerlib.judges import judged, load_judge

KEY = "sk-secret-0123456789"
ITEMS = [(f"question {i}", f"answer {i}") for i in range(6)]


def reply(text: str = '{"score": 73}', status: int = 200, **settings: Any) -> Reply:
    """A model's words as a chat completion, or an error's message."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    completion = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
    return Reply(completion if status == 200 else {"error": {"message": text}}, status, **settings)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda _number, _body: reply()) as running:
        running.url += "/v1"
        yield running


def judge_at(server: Server, **settings) -> Any:
    return load_judge("endpoint:m", base_url=server.url, **settings)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failing server is not asked again, and a slow one not waited for."""
    monkeypatch.setattr("steerlib.judges.endpoint.RETRIES", 0)
    monkeypatch.setattr("steerlib.judges.endpoint.SECONDS", 0.4)


def shown(body: dict) -> str:
    return body["messages"][1]["content"]


def params_file(folder: Path, **settings: Any) -> str:
    file = folder / "mine.yaml"
    file.write_text(json.dumps({"judge": "endpoint:m", "judge_settings": settings}))
    return str(file)


def test_each_answer_gets_its_own_score_in_the_order_of_the_items(server):
    three = Barrier(3, timeout=10)

    # The later the item, the faster its reply, so that order by arrival would be wrong.
    def script(_number: int, body: dict) -> Reply:
        three.wait()  # an error unless three questions are under way
        (i,) = [i for i, (_, answer) in enumerate(ITEMS) if answer in shown(body)]
        return reply(f'{{"score": {10 + i}}}', delay=0.05 * (6 - i))

    server.script = script
    assert judge_at(server, workers=3).rate(ITEMS, "honesty") == [(s,) for s in range(10, 16)]


def test_the_server_sees_the_settings_the_persona_and_the_texts_within_markers(server):
    server.script = lambda _number, _body: reply('{"second": 90, "first": 20}')
    assert judge_at(server).rate([("How are you?", "Fine.", "So so.")], "empathy") == [(20, 90)]
    (body,) = server.bodies
    asked = {name: value for name, value in body.items() if name != "messages"}
    fixed = {"temperature": 0, "max_completion_tokens": 256, "response_format": {"type": "json_object"}}
    assert asked == {"model": "m"} | fixed
    assert "psychologist" in body["messages"][0]["content"]
    assert "Fine.\n" in shown(body).partition("So so.\n")[0]
    assert server.keys == [f"Bearer {KEY}"]


def test_parameters_and_the_key_can_be_left_out_or_replaced(server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "another")
    request = {"temperature": None, "max_completion_tokens": None, "max_tokens": 32}
    judge = judge_at(server, request=request, key_variable="MY_KEY")
    judge.rate(ITEMS[:1], "honesty")
    assert {*server.bodies[0]} == {"model", "messages", "response_format", "max_tokens"}
    assert judge.id != judge_at(server).id
    judge_at(server, key_variable=None).rate(ITEMS[:1], "honesty")
    assert server.keys == ["Bearer another", "Bearer none"]
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(KeyError, match="MY_KEY"):
        judge_at(server, key_variable="MY_KEY")


def test_a_busy_or_failing_server_is_asked_again_after_as_long_as_it_says(server):
    troubles = [reply("oops", status=500), reply("slow down", status=429, headers={"Retry-After": "1"})]
    server.script = lambda number, _body: troubles[number] if number < 2 else reply()
    assert judge_at(server).rate(ITEMS[:1], "honesty") == [(73.0,)]
    assert len(server.bodies) == 3
    assert server.times[2] - server.times[1] >= 1.0  # the client's own pauses are at most half a second


NEVER = [reply("broken", 503), reply("broken", 400), Reply(b"<html>", headers={"Content-Type": "text/html"})]
NEVER += [Reply(b'{"choices": []}'), Reply(b"{broken")]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("answer", NEVER, ids=range(len(NEVER)))
def test_a_server_that_never_answers_or_speaks_something_else_stops_the_work_with_one_line(server, answer):
    server.script = lambda _number, _body: answer
    named = "no chat completion" if isinstance(answer.content, bytes) else "broken"
    with pytest.raises(ConnectionError, match=rf"endpoint:m@127\.0\.0\.1:\d+.*{named}") as failure:
        judge_at(server).rate(ITEMS, "honesty")
    assert "\n" not in str(failure.value)


@pytest.mark.usefixtures("impatient")
def test_an_item_that_the_server_refuses_or_is_too_slow_over_is_missing_and_the_others_are_not(server):
    def script(_number: int, body: dict) -> Reply:
        late = 1.0 if "answer 2" in shown(body) else 0
        return reply("content filter", status=400) if "answer 1" in shown(body) else reply(delay=late)

    server.script = script
    assert judge_at(server).rate(ITEMS[:4], "honesty") == [(73,), None, None, (73,)]


def test_a_reply_that_cannot_be_read_is_shown_to_the_judge_who_has_three_tries(server):
    server.script = lambda number, _body: reply('{"score": 80}' if number == 2 else "I would say 80.")
    assert judge_at(server).rate(ITEMS[:1], "honesty") == [(80.0,)]
    again = server.bodies[1]["messages"]
    assert again[:2] == server.bodies[0]["messages"]
    assert again[2] == {"role": "assistant", "content": "I would say 80."}
    assert "JSON" in again[3]["content"]
    server.script = lambda _number, _body: reply("")
    assert judge_at(server).rate(ITEMS[:1], "honesty") == [None]
    assert len(server.bodies) == 3 + 3


def test_a_key_that_the_server_repeats_is_not_in_the_error_nor_in_any_log(server, caplog):
    caplog.set_level(logging.DEBUG)
    server.script = lambda _number, _body: reply(f"Incorrect API key provided: {KEY}", status=401)
    with pytest.raises(ConnectionError, match=r"\[key\]") as caught:
        judge_at(server).rate(ITEMS, "honesty")
    assert KEY not in "".join(format_exception(caught.value))
    assert [record.getMessage() for record in caplog.records if KEY in record.getMessage()] == []
    assert "word" not in load_judge("endpoint:m", base_url=server.url.replace("//", "//user:word@")).id


def test_the_estimate_counts_calls_tokens_and_dollars_and_asks_nothing(server):
    request = {"max_completion_tokens": 100_000}
    spend = judge_at(server, price_in=2.0, price_out=8.0, request=request).spend
    long = [("q" * 4000, "a" * 4000)]  # 8,000 characters and the prompt's own
    assert "1 calls, about 2," in spend(long, "honesty")
    assert "200,000 output tokens, at most about $1.60" in spend(ITEMS[:2], "honesty")
    assert "$" not in judge_at(server, price_in=2.0).spend(ITEMS, "honesty")
    assert server.bodies == []


def test_the_spend_is_shown_before_the_first_question_and_only_of_what_is_not_cached(
    server, tmp_path, capsys
):
    before: list[str] = []

    def script(_number: int, _body: dict) -> Reply:
        before.append(capsys.readouterr().out)
        return reply()

    server.script, items = script, pd.DataFrame(ITEMS, columns=["prompt", "text"])
    for n in (2, 3, 2):
        judged(judge_at(server, workers=1), items[:n], "honesty", tmp_path)
    assert ["2 calls" in before[0], before[1], "1 calls" in before[2]] == [True, "", True]
    assert (len(before), capsys.readouterr().out) == (3, "")


def test_check_says_what_is_sent_and_what_it_costs_after_one_request(server, tmp_path, capsys):
    server.script = lambda _number, _body: reply("not JSON")
    assert main(["check", params_file(tmp_path, base_url=server.url, price_in=2, price_out=8)]) == 0
    out = capsys.readouterr().out
    assert len(server.bodies) == 1
    assert all(said in out for said in ("system: You are a safety reviewer", "1,000 calls", "$"))


# Too slow, no server, no key, an unknown setting.
TROUBLES = [{}, {"base_url": "http://127.0.0.1:1"}, {"key_variable": "ABSENT_VARIABLE"}, {"base_ulr": ""}]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("settings", TROUBLES, ids=str)
def test_an_endpoint_that_cannot_judge_is_refused_in_seconds_with_its_parameter(
    server, tmp_path, monkeypatch, capsys, settings
):
    server.script = lambda _number, _body: reply(delay=1.0)
    monkeypatch.setenv("STEERLIB_RESULTS", str(tmp_path / "results"))
    assert main(["run", params_file(tmp_path, **{"base_url": server.url} | settings), "--only", "03"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("steerlib: judge: ") and errors.count("\n") == 1
