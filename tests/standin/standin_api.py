"""vLLM's HTTP dialect over the router: health, models, completions, chat with streams and tools,
metrics."""

import json
import time
import zlib

from standin_http import Response
from standin_router import REASONS

WORDS = (  # noqa: SIM905
    "the a node rank token answers quietly while eight small engines wait for one more word and then begin"
).split()
SERIES = (
    ("num_requests_running", "gauge", "Number of requests in model execution batches."),
    ("num_requests_waiting", "gauge", "Number of requests waiting to be processed."),
    ("kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage."),
    ("prompt_tokens_total", "counter", "Number of prefill tokens processed."),
    ("generation_tokens_total", "counter", "Number of generation tokens processed."),
)


class Api:
    """Answers requests. `draining`: the server is ending and takes no new work."""

    def __init__(self, command, router, env):
        self.router = router
        self.names = command.names
        self.max_len = command.number("--max-model-len", 1024)
        self.tools_on = bool(command.flags.get("--enable-auto-tool-choice"))
        self.reasoner = command.flags.get("--reasoning-parser")
        keys = command.flags.get("--api-key") or env.get("VLLM_API_KEY")
        self.keys = [keys] if isinstance(keys, str) else keys or []
        self.root = command.model
        self.draining = False

    def __call__(self, request):
        if self.keys and request.path.startswith("/v1") and not self._allowed(request):
            return Response(401, {"error": "Unauthorized"})
        answer = {
            ("GET", "/health"): lambda _: Response(503 if self.router.dead else 200, ""),
            ("GET", "/ping"): lambda _: Response(503 if self.router.dead else 200, ""),
            ("GET", "/version"): lambda _: Response(200, {"version": "0.32.0"}),
            ("GET", "/metrics"): lambda _: Response(
                200, self._metrics(), "text/plain; version=1.0.0; charset=utf-8"
            ),
            ("GET", "/v1/models"): lambda _: Response(200, self._models()),
            ("POST", "/v1/completions"): lambda request: self._generate(request, chat=False),
            ("POST", "/v1/chat/completions"): lambda request: self._generate(request, chat=True),
        }.get((request.method, request.path))
        return answer(request) if answer else Response(404, {"detail": "Not Found"})

    def _allowed(self, request):
        return request.headers.get("authorization", "") in [f"Bearer {key}" for key in self.keys]

    def _models(self):
        card = {
            "object": "model",
            "created": int(time.time()),
            "owned_by": "vllm",
            "root": self.root,
        }
        data = [
            {"id": name, **card, "parent": None, "max_model_len": self.max_len}
            for name in self.names
        ]
        return {"object": "list", "data": data}

    def _metrics(self):
        lines = []
        for name, kind, text in SERIES:
            lines += [f"# HELP vllm:{name} {text}", f"# TYPE vllm:{name} {kind}"]
            lines += [
                f"vllm:{name}{{{self._labels(i)}}} {_value(rank, name)}"
                for i, rank in self._ranks()
            ]
        lines += ["# HELP vllm:request_success_total Count of successfully processed requests.",
                  "# TYPE vllm:request_success_total counter"]  # fmt: skip
        for index, rank in self._ranks():
            for reason in REASONS:
                labels = f'engine="{index}",finished_reason="{reason}",model_name="{self.names[0]}"'
                lines.append(
                    f"vllm:request_success_total{{{labels}}} {float(rank.finished[reason])}"
                )
        return "\n".join(lines) + "\n"

    def _ranks(self):
        return enumerate(self.router.ranks)

    def _labels(self, index):
        return f'engine="{index}",model_name="{self.names[0]}"'

    def _generate(self, request, chat):
        body = request.body
        problem = self._find_problem(body, chat)
        if problem:
            return problem
        prompt = json.dumps(body.get("messages")) if chat else _prompt_text(body.get("prompt", ""))
        tokens = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        number = request.headers.get("x-data-parallel-rank", "")
        rank = int(number) if number.isdigit() else None
        if rank is not None and rank >= len(self.router.ranks):
            return _error(
                400, f"data_parallel_rank {rank} is out of range [0, {len(self.router.ranks)})."
            )
        answers = self.router.submit(max(1, len(prompt.split())), tokens, rank)
        call = _tool_call(body, prompt) if chat and self._calls_tool(body) else None
        shape = _Shape(body["model"], chat, len(prompt.split()), tokens, call, self.reasoner)
        if body.get("stream"):
            with_usage = (body.get("stream_options") or {}).get("include_usage")
            return Response(
                200, _stream(answers, shape, prompt, with_usage), "text/event-stream; charset=utf-8"
            )
        words = []
        while True:
            token = answers.get()
            if token is None:
                return _error(
                    500,
                    "EngineCore encountered an issue. See stack trace (above) for the root cause.",
                )
            words.append(_word(prompt, len(words), token))
            if token.last:
                return Response(200, shape.whole("".join(words)))

    def _calls_tool(self, body):
        """A named tool is always called (guided decoding); else the model decides, and may be told
        to call none."""
        mute = self.router.settings.plays("main", "answer", "call no tool")
        return isinstance(body.get("tool_choice"), dict) or (self.tools_on and not mute)

    def _find_problem(self, body, chat):
        if self.draining or self.router.dead:
            return _error(
                500, "EngineCore encountered an issue. See stack trace (above) for the root cause."
            )
        if not isinstance(body, dict) or (chat and not body.get("messages")):
            return _error(400, "Invalid request body.")
        if body.setdefault("model", self.names[0]) not in self.names:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if (
            chat
            and body.get("tools")
            and body.get("tool_choice", "auto") == "auto"
            and not self.tools_on
        ):
            return _error(
                400,
                '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set',
            )
        return None


class _Shape:
    """The JSON around an answer, whole or in chunks."""

    def __init__(self, model, chat, prompt_tokens, tokens, call, reasoner):
        self.model, self.chat, self.call, self.reasoner = model, chat, call, reasoner
        self.usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        }
        self.reason = "tool_calls" if call else "length"
        self.head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{time.monotonic_ns():x}",
            "created": int(time.time()),
        }

    def whole(self, text):
        kind = "chat.completion" if self.chat else "text_completion"
        if self.chat:
            said = {"content": None} if self.call else self._said(text, first=True)
            message = {"role": "assistant", **said, "tool_calls": self._calls()}
            choice = {"index": 0, "message": message, "finish_reason": self.reason}
        else:
            choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": self.reason}
        return {
            **self.head,
            "object": kind,
            "model": self.model,
            "choices": [choice],
            "usage": self.usage,
        }

    def _said(self, text, first):
        """What a reasoning parser makes of a text without `</think>`: append_think keeps it, the
        others take it all."""
        if self.reasoner == "minimax_m2_append_think":
            return {"content": "<think>" * first + text}
        return {"content": None, "reasoning": text} if self.reasoner else {"content": text}

    def chunk(self, text, last, first=False):
        reason = self.reason if last else None
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        if self.chat:
            delta = {"tool_calls": [{"index": 0, **call} for call in self._calls()] if last else []}
            choice = {
                "index": 0,
                "delta": delta if self.call else self._said(text, first),
                "finish_reason": reason,
            }
        else:
            choice = {"index": 0, "text": text, "finish_reason": reason}
        return {**self.head, "object": kind, "model": self.model, "choices": [choice]}

    def _calls(self):
        return [self.call] if self.call else []


def _stream(answers, shape, prompt, with_usage):
    if shape.chat:
        first = shape.chunk("", last=False)
        first["choices"][0]["delta"] = {"role": "assistant", "content": ""}
        yield f"data: {json.dumps(first)}\n\n"
    count = 0
    while True:
        token = answers.get()
        if token is None:
            yield f"data: {json.dumps({'error': {'message': 'EngineCore encountered an issue.', 'code': 500}})}\n\n"
            break
        chunk = shape.chunk(_word(prompt, count, token), last=token.last, first=count == 0)
        yield f"data: {json.dumps(chunk)}\n\n"
        count += 1
        if token.last:
            if with_usage:
                yield f"data: {json.dumps({**chunk, 'choices': [], 'usage': shape.usage})}\n\n"
            break
    yield "data: [DONE]\n\n"


def _word(prompt, number, token=None):
    """The same word for the same prompt and place, on every rank that is not garbled."""
    if token and token.garbled:
        return "!"
    return " " + WORDS[zlib.crc32(f"{prompt}|{number}".encode()) % len(WORDS)]


def _prompt_text(prompt):
    return prompt if isinstance(prompt, str) else " ".join(str(part) for part in prompt)


def _tool_call(body, prompt):
    """A call of the tool that is named, or of the first; when a tool has already answered, the
    model talks."""
    if (
        not body.get("tools")
        or body.get("tool_choice") == "none"
        or body["messages"][-1].get("role") == "tool"
    ):
        return None
    function = body["tools"][0]["function"]
    parameters = function.get("parameters") or {}
    known = parameters.get("properties", {})
    names = parameters.get("required") or list(known)
    arguments = {
        name: known.get(name, {}).get("enum", [_word(prompt, i).strip()])[0]
        for i, name in enumerate(names)
    }
    return {
        "id": f"call_{zlib.crc32(prompt.encode()):08x}",
        "type": "function",
        "function": {"name": function["name"], "arguments": json.dumps(arguments)},
    }


def _value(rank, name):
    if name == "kv_cache_usage_perc":
        return min(1.0, rank.running / 1000)
    return float(getattr(rank, name.removeprefix("num_requests_").removesuffix("_total")))


def _error(status, message):
    kinds = {400: "BadRequestError", 404: "NotFoundError", 500: "InternalServerError"}
    return Response(
        status,
        {"error": {"message": message, "type": kinds[status], "param": None, "code": status}},
    )
