"""Clients without retries of their own: plain and streaming completions, again and again.

clients.py URL PLAIN STREAMS; URL is the root of an OpenAI API. First each prompt is asked alone for
its undisturbed answers. Then one JSON object per finished request is printed, until stdin is
closed; requests that run then are finished. Standard library alone.
"""

import http.client
import json
import random
import sys
import threading
import time
from urllib.parse import urlsplit

PLAIN_TOKENS, STREAM_TOKENS = 16, 200
PROMPTS = [f"{word} counts the tokens of" for word in ("one", "two", "three")]
PATIENCE_S = 900.0
"""Longer than a gateway holds a request: a client that gives up would hide what it does."""
PAUSE_S = 0.05
OK = "ok"
URL = urlsplit(sys.argv[1])
closing = threading.Event()


def body_of(prompt: str, *, stream: bool) -> str:
    body = {"model": "tiny", "prompt": prompt, "temperature": 0, "ignore_eos": True}
    if stream:
        return json.dumps({**body, "max_tokens": STREAM_TOKENS, "stream": True})
    return json.dumps({**body, "max_tokens": PLAIN_TOKENS})


def ask(prompt: str, *, stream: bool) -> tuple[str, str]:
    """Return what came of one request (OK, or what went wrong), and its text."""
    address = (URL.hostname or "", URL.port or 80)
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
    try:
        connection.connect()
    except OSError as error:
        return f"refused: {error}", ""
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", body_of(prompt, stream=stream), headers)
        response = connection.getresponse()
        if response.status != 200:
            return f"status {response.status}: {response.read()[:200]!r}", ""
        if stream:
            return read_stream(response)
        return read_plain(response.read())
    except (OSError, http.client.HTTPException) as error:
        return f"cut: {error!r}", ""
    finally:
        connection.close()


def read_plain(data: bytes) -> tuple[str, str]:
    if not data:
        return "empty 200", ""
    try:
        return OK, json.loads(data)["choices"][0]["text"]
    except (ValueError, KeyError) as error:
        return f"no completion: {error!r}", ""


def read_stream(response: http.client.HTTPResponse) -> tuple[str, str]:
    text, reason = "", None
    while line := response.readline():
        if not line.startswith(b"data: "):
            continue
        data = line.removeprefix(b"data: ").strip()
        if data == b"[DONE]":
            return (OK if reason == "length" else f"finish_reason {reason}"), text
        event = json.loads(data)
        if "error" in event:
            return f"error event: {json.dumps(event['error'])[:200]}", text
        for choice in event["choices"]:
            text += choice["text"]
            reason = choice["finish_reason"] or reason
    return ("stream without an end" if text else "empty 200"), text


def tell(**seen: object) -> None:
    # One write for each line: several threads print.
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()


def undisturbed(*, stream: bool) -> dict[str, str]:
    """Return the text of each prompt without a fault."""
    found: dict[str, str] = {}
    for prompt in PROMPTS:
        result, text = ask(prompt, stream=stream)
        if result != OK:
            sys.exit(f"the undisturbed request failed: {result}")
        found[prompt] = text
    return found


def request_again_and_again(expected: dict[str, str], *, stream: bool) -> None:
    while not closing.is_set():
        prompt = random.choice(PROMPTS)
        began, waited = time.time(), time.monotonic()
        result, text = ask(prompt, stream=stream)
        if result == OK and text != expected[prompt]:
            result = f"another text: {text[:60]!r}"
        kind = "stream" if stream else "plain"
        spent = round(time.monotonic() - waited, 3)
        tell(kind=kind, began=began, at=time.time(), s=spent, result=result)
        time.sleep(PAUSE_S)


def main() -> None:
    threads = []
    for stream, count in ((False, int(sys.argv[2])), (True, int(sys.argv[3]))):
        expected = undisturbed(stream=stream)
        for _ in range(count):
            work = threading.Thread(
                target=request_again_and_again, args=(expected,), kwargs={"stream": stream}
            )
            threads.append(work)
    tell(ready=True)
    for thread in threads:
        thread.start()
    sys.stdin.read()
    closing.set()


main()
