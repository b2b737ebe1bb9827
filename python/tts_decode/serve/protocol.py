"""Request bodies in OpenAI's protocol, with the additions of vLLM and others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError

from .errors import APIError, given, invalid, shortened, unsupported
from .refused import OF_MESSAGES, without_refused

B = TypeVar("B", bound="Body")

_LONGEST_MESSAGE = 200  # characters of pydantic's own
_LONGEST_NAME = 80  # characters of a client's own field name that an error repeats
_MOST_FIELDS = 200  # of an object: pydantic describes each unknown field, and only the first is reported
_MOST_MESSAGES = 4096


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise ValueError("expected a text or a list of texts, none of them empty")
    return tuple(stops)


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """Returns prompts as texts or as ids, at least one."""
    prompts = [value] if isinstance(value, str) else value
    if isinstance(prompts, list) and prompts and all(_is_id(item) for item in prompts):
        prompts = [prompts]
    if isinstance(prompts, list) and prompts:
        if all(isinstance(item, str) and item for item in prompts):
            return prompts
        if all(isinstance(item, list) and item and all(map(_is_id, item)) for item in prompts):
            return prompts
    raise ValueError(
        "expected a text, a list of texts, a list of token ids, or a list of such lists; none empty"
    )


def _is_id(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool)


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError("expected a text or a list of parts")
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ValueError('expected a text, or parts of the form {"type": "text", "text": "..."} only')
        if set(part) != {"type", "text"}:
            raise ValueError("expected a text part to hold type and text only")
    return "".join(part["text"] for part in value)


class Body(BaseModel):
    """null means the default everywhere. Numbers must be numbers: no text is read as one."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SchemaFormat(Body):
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None


class SearchOptions(BaseModel):
    """Options of a request that is a search. Fields not named here are options of the strategy.

    Attributes:
        step_stop: texts that end a step. max_step_tokens: of a step.
        budget_tokens: sampled by the whole search.
    """

    model_config = ConfigDict(extra="allow", strict=True)

    strategy: str
    scorer: str | None = None
    step_stop: Annotated[Any, AfterValidator(_stops)] = ("\n",)
    max_step_tokens: int | None = Field(default=None, ge=1)
    budget_tokens: int | None = Field(default=None, ge=1)


class Generating(Body):
    """Fields that both endpoints take."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=0)
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    temperature: float | None = Field(default=None, ge=0, le=100)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=100)
    repeat_penalty: float | None = Field(default=None, gt=0, le=100)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    stop: Annotated[Any, AfterValidator(_stops)] = ()
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    no_stop_trim: bool | None = None
    return_token_ids: bool | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    tts: SearchOptions | None = None


class CompletionBody(Generating):
    prompt: Annotated[Any, AfterValidator(_prompts)]
    best_of: int | None = Field(default=None, ge=1)
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0)


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[Any, AfterValidator(_content)]


class ChatBody(Generating):
    messages: Annotated[list[Message], FailFast()] = Field(min_length=1, max_length=_MOST_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


def read_body(kind: type[B], data: Any) -> B:
    """Returns the parsed body. Raises APIError, 400, with the wrong field."""
    if not isinstance(data, dict):
        raise APIError(400, f"the body: got {given(data)}, expected an object", None, "invalid_value")
    data = _without_nulls(_with_extra(data), None)
    fields = without_refused("chat" if kind is ChatBody else "completions", data)
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [
            _without_nulls(item, f"messages[{i}]") if isinstance(item, dict) else item
            for i, item in enumerate(messages)
        ]
    if isinstance(search := fields.get("tts"), dict):
        fields["tts"] = _without_nulls(search, "tts")
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise _as_api_error(error) from None


def _with_extra(data: dict[str, Any]) -> dict[str, Any]:
    """Merges the field `extra_body`, which some clients send, into the body."""
    own = {name: value for name, value in data.items() if name != "extra_body"}
    extra = data.get("extra_body")
    if extra is None:
        return own
    if not isinstance(extra, dict):
        raise invalid("extra_body", f"got {given(extra)}, expected an object")
    for name, value in extra.items():
        if name == "extra_body" or (name in own and own[name] != value):
            param = f"extra_body.{shortened(name, _LONGEST_NAME)}"
            raise invalid(param, "got another value than the body's own, expected it in one place")
    return extra | own


def _without_nulls(data: dict[str, Any], param: str | None) -> dict[str, Any]:
    if len(data) > _MOST_FIELDS:
        where = "the body" if param is None else param
        message = f"{where}: got {len(data)} fields, expected {_MOST_FIELDS} at most"
        raise APIError(400, message, param, "invalid_value")
    return {name: value for name, value in data.items() if value is not None}


def _as_api_error(error: ValidationError) -> APIError:
    """Returns the first error."""
    first = error.errors(include_url=False)[0]
    param = ""
    for part in first["loc"]:
        param += f"[{part}]" if isinstance(part, int) else f".{part}" if param else str(part)
    param = shortened(param, _LONGEST_NAME)
    if first["type"] == "missing":
        return APIError(400, f"{param}: missing", param, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        if param.startswith("messages[") and (name := str(first["loc"][-1])) in OF_MESSAGES:
            return unsupported(param, OF_MESSAGES[name])
        return APIError(400, f"{param}: unknown field", param, "unknown_parameter")
    return invalid(param, f"got {given(first['input'])}, expected {_expected(first)}")


def _expected(error: Mapping[str, Any]) -> str:
    """Returns what was expected in JSON's terms; pydantic uses Python's."""
    kind, message = str(error["type"]), str(error["msg"])
    if kind in _EXPECTED:
        return _EXPECTED[kind].format(**error.get("ctx", {}))
    for begin in ("Value error, expected ", "Input should be "):
        if message.startswith(begin):
            return message.removeprefix(begin)
    return f"another value: {shortened(message, _LONGEST_MESSAGE)}"


_EXPECTED = {
    "model_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "string_type": "a text",
    "bool_type": "true or false",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length}",
    "too_long": "at most {max_length}",
}
