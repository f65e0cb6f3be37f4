"""The chat page in a real Chromium, against a small server of the OpenAI API."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.visit import call


def test_an_answer_is_shown_as_it_comes(visit: Any) -> None:
    here = visit([{"content": "Hel"}, {"content": "lo"}, {"pause": 2}, {"content": " there."}])
    here.ask("Hi")
    here.until("document.querySelector('.assistant .body')?.innerText === 'Hello'")
    assert here.page.is_visible("#stop")
    here.done()
    assert here.bodies == ["Hi", "Hello there."]
    (asked,) = here.stub.requests
    assert asked["messages"] == [{"role": "user", "content": "Hi"}]
    assert asked["stream"] is True
    assert asked["model"] == "stub"
    assert "3 tokens" in here.page.inner_text(".stats")


def test_a_conversation_goes_on(visit: Any) -> None:
    here = visit()
    here.answered("One")
    here.answered("Two")
    roles = [each["role"] for each in here.stub.requests[1]["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert here.stub.requests[1]["messages"][1]["content"] == "Hello there."


def test_stop_ends_the_answer_and_the_work(visit: Any) -> None:
    here = visit([{"content": "Once"}, *[{"pause": 0.05}, {"content": " more"}] * 200])
    here.ask("Hi")
    here.until("document.querySelector('.assistant .body')?.innerText.includes('more')")
    here.page.click("#stop")
    here.done()
    assert here.bodies[1].startswith("Once more")
    assert "stopped" in here.page.inner_text(".stats")
    here.page.wait_for_timeout(500)
    assert here.stub.closed == 1


def test_again_and_edit_replace_what_follows(visit: Any) -> None:
    here = visit()
    here.answered("First")
    here.answered("Second")
    here.page.locator(".assistant").nth(1).get_by_text("Again", exact=True).click()
    here.done()
    assert here.stub.requests[2]["messages"] == here.stub.requests[1]["messages"]
    here.page.locator(".user").nth(0).get_by_text("Edit").click()
    here.page.fill(".user textarea", "Other")
    here.page.locator(".user form").get_by_text("Send").click()
    here.done()
    assert here.stub.requests[3]["messages"] == [{"role": "user", "content": "Other"}]
    assert here.bodies == ["Other", "Hello there."]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_is_folded(visit: Any, name: str) -> None:
    here = visit([{name: "Hm, <i>well</i>."}, {"content": "Yes."}])
    here.answered("Hi")
    assert not here.page.is_visible("details.thought > div")
    here.page.click("summary")
    assert here.page.inner_text("details.thought > div") == "Hm, <i>well</i>."
    here.answered("And?")
    assert here.stub.requests[1]["messages"][1] == {"role": "assistant", "content": "Yes."}


def test_calls_are_shown_and_take_results(visit: Any) -> None:
    here = visit([*call("weather", '{"city": "<b>Oslo"}'), *call("now", "{}", 1)])
    here.answered("Weather?")
    assert '"city": "<b>Oslo"' in here.page.inner_text(".call pre >> nth=0")
    here.stub.deltas = [{"content": "Rain."}]
    here.page.locator(".call input").nth(0).fill("rain")
    here.page.locator(".call button:text('Give')").nth(0).click()
    assert len(here.stub.requests) == 1
    here.page.locator(".call input").nth(0).fill("noon")
    here.page.locator(".call button:text('Give')").nth(0).click()
    here.until("document.querySelectorAll('.assistant').length === 2")
    here.done()
    messages = here.stub.requests[1]["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "<b>Oslo"}'}
    assert {each["tool_call_id"] for each in messages[2:]} == {"call_0", "call_1"}


def test_settings_are_sent_and_kept(visit: Any) -> None:
    here = visit()
    here.page.click("#open-settings")
    given = {
        "system": "Be brief.",
        "temperature": "0.5",
        "top_k": "40",
        "max_completion_tokens": "9",
        "stop": "END\n\nX",
    }
    for name, value in given.items():
        here.page.fill(f"#settings [name={name}]", value)
    here.page.fill("#settings [name=tools]", "{")
    here.page.click("#settings button.main")
    assert "Tools" in here.page.inner_text("#settings-error")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    here.page.fill("#settings [name=tools]", json.dumps([tool]))
    here.page.select_option("#settings [name=thinking]", "false")
    here.page.click("#settings button.main")
    here.page.select_option("#model", "other")
    here.page.close()
    here.open()
    here.until("document.getElementById('model').value === 'other'")
    here.answered("Hi")
    (asked,) = here.stub.requests
    assert asked["messages"][0] == {"role": "system", "content": "Be brief."}
    wanted = {"temperature": 0.5, "top_k": 40, "max_completion_tokens": 9, "stop": ["END", "X"], "tools": [tool]}
    assert {key: asked[key] for key in wanted} == wanted
    assert asked["chat_template_kwargs"] == {"enable_thinking": False}
    assert asked["model"] == "other"
    assert not {"top_p", "min_p", "seed", "logprobs"} & set(asked)


def test_several_chats_are_kept(visit: Any) -> None:
    here = visit()
    here.answered("About cats")
    here.page.click("#new")
    here.answered("About dogs")
    here.page.close()
    here.open()
    assert here.page.locator("#chats li button:first-child").all_inner_texts() == ["About dogs", "About cats"]
    here.page.get_by_role("button", name="About cats", exact=True).click()
    assert here.bodies == ["About cats", "Hello there."]
    here.page.get_by_role("button", name="Delete About cats").click()
    assert here.bodies == ["About dogs", "Hello there."]


def test_a_key_is_asked_for_when_needed(visit: Any) -> None:
    here = visit(key="secret")
    for value in ("wrong", "secret"):
        here.page.wait_for_selector("#key[open]")
        here.page.fill("#key-value", value)
        here.page.click("#key button.main")
    here.until("document.getElementById('model').options.length === 2")
    here.answered("Hi")
    assert here.bodies == ["Hi", "Hello there."]
    assert here.page.evaluate("JSON.stringify(localStorage)").find("secret") < 0


def test_errors_are_said(visit: Any) -> None:
    here = visit([{"content": "Half"}, {"error": "the <b>model</b> is gone"}])
    here.answered("Hi")
    assert here.page.inner_text(".error") == "the <b>model</b> is gone"
    assert here.bodies == ["Hi", "Half"]
    here.stub.deltas = [{"status": 429}]
    here.answered("Again")
    assert here.page.inner_text(".error >> nth=1") == "not now (429)"
    here.stub.close()
    here.answered("Still?")
    assert here.page.inner_text(".error >> nth=2") == "The server is not there."


def test_enter_of_an_input_method_does_not_send(visit: Any) -> None:
    here = visit()
    here.page.fill("#text", "にほん")
    press = "new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true, %s})"
    for how in ("isComposing: true", "keyCode: 229", "shiftKey: true"):
        here.page.evaluate(f"document.getElementById('text').dispatchEvent({press % how})")
    assert here.stub.requests == []
    assert here.page.input_value("#text") == "にほん"
    here.page.press("#text", "Enter")
    here.done()
    assert here.bodies[0] == "にほん"


def test_look_inside_shows_what_else_could_have_been(visit: Any) -> None:
    here = visit([{"content": "Yes"}, {"content": " or\n"}, {"content": "no"}])
    here.page.click("#inside")
    here.answered("Hi")
    assert here.stub.requests[0]["top_logprobs"] == 5
    tokens = here.page.locator("#tokens > span")
    assert tokens.all_text_contents() == ["Yes", " or↵\n", "no"]
    tokens.nth(0).focus()
    here.page.keyboard.press("Enter")
    assert here.page.locator("#choices td").all_text_contents() == ["Yes", "", "90 %", "<b>x", "", "8.21 %"]
    here.page.click("#close-look")
    here.answered("And?")
    assert "logprobs" not in here.stub.requests[1]
