"""The words of services' refusals, each with the report that it is from."""

import json
from typing import Any

import pytest

from shared.model.error_body import ErrorBody, read_error
from shared.model.refusal_words import (
    context_limit,
    context_too_long,
    malformed_request,
    max_output,
    no_credit,
    tools_need_no_reasoning,
    unknown_fields,
)

JSON = dict[str, Any]


def openai_error(message: str, param: str | None = None, code: Any = None, kind: str = "invalid_request_error") -> JSON:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


QUOTA = "You exceeded your current quota, please check your plan and billing details."
NO_CREDIT: dict[str, tuple[int, Any]] = {
    "langchain-ai/langchainjs#1929": (429, openai_error(QUOTA, code="insufficient_quota", kind="insufficient_quota")),
    "chatanywhere/GPT_API_free#229": (429, openai_error("余额不足", kind="insufficient_quota")),
    "waylaidwanderer/node-chatgpt-api#167": (429, openai_error(QUOTA, kind="insufficient_quota")),
    "words alone": (429, openai_error(QUOTA, kind="requests")),
    "OpenAI's budget": (429, openai_error("Billing hard limit has been reached.", code="billing_hard_limit_reached")),
    "continuedev/continue#9942": (402, openai_error("Insufficient Balance", kind="unknown_error")),
    "Aider-AI/aider#4851": (400, openai_error("Insufficient Balance", code="invalid_request_error")),
    "a page": (402, "<html><body>402</body></html>"),
    "Anthropic's": (400, openai_error("Your credit balance is too low to access the Anthropic API.")),
    "one-api's": (403, openai_error("user quota is not enough", code="insufficient_user_quota", kind="one_api_error")),
}
RATE_LIMITS: dict[str, Any] = {
    "Azure": openai_error(
        "Requests have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 1 second."
    ),
    "Gemini": openai_error(
        f"{QUOTA} Quota exceeded for metric: requests_per_minute, limit: 15. Please retry in 3.07s."
    ),
    "OpenAI": openai_error(
        "Rate limit reached for gpt-4 on tokens per min (TPM): Limit 10000.", code="rate_limit_exceeded"
    ),
}
LLAMA = "the request exceeds the available context size. try increasing the context size or enable context shift"
TOO_LONG: dict[str, tuple[int, Any]] = {
    "OpenAI": (400, openai_error("Too long.", param="messages", code="context_length_exceeded")),
    "gpt-5": (400, openai_error("Input tokens exceed the configured limit of 272000 tokens.", param="messages")),
    "vllm-project/vllm#20409": (
        400,
        {
            "object": "error",
            "message": "This model's maximum context length is 16384 tokens. However, you requested 122946 tokens"
            " (112946 in the messages, 10000 in the completion). Please reduce the length of the messages or"
            " completion.",
            "type": "BadRequestError",
            "param": None,
            "code": 400,
        },
    ),
    "vllm-project/vllm#4667": (
        400,
        {"object": "error", "message": "max_tokens must be at least 1, got -186.", "code": 400},
    ),
    "vLLM 0.12": (
        400,
        openai_error(
            "'max_tokens' or 'max_completion_tokens' is too large: 1024. This model's maximum context length is 2048"
            " tokens and your request has 1500 input tokens (1024 > 2048 - 1500).",
            param="max_completion_tokens",
            code=400,
            kind="BadRequestError",
        ),
    ),
    "vLLM's prompt": (
        400,
        {"error": {"message": "The decoder prompt (length 40000) is longer than the maximum model length of 32768."}},
    ),
    "vllm-project/vllm#10440": (400, {"detail": "Input prompt (35247 tokens) is too long and exceeds limit of 1000"}),
    "Mistral": (
        400,
        {
            "object": "error",
            "message": "Prompt contains 40960 tokens and 0 draft tokens, too large for model with 32768 maximum context"
            " length",
            "type": "invalid_request_prompt",
            "code": "3051",
        },
    ),
    "ggml-org/llama.cpp#15780": (
        500,
        {"error": {"code": 500, "message": LLAMA, "type": "exceed_context_size_error", "n_prompt_tokens": 14}},
    ),
    "ggml-org/llama.cpp#17284": (
        400,
        openai_error("the request exceeds the available context size, try increasing it."),
    ),
    "ggml-org/llama.cpp#19774": (500, openai_error("Context size has been exceeded.", kind="server_error")),
    "Ollama": (400, openai_error("the input length exceeds the context length", kind="api_error")),
    "LiteLLM": (
        400,
        openai_error(
            "litellm.ContextWindowExceededError: AnthropicException - prompt is too long: 9001 tokens > 8000 maximum"
        ),
    ),
    "Anthropic": (413, {"detail": "prompt is too long: 205000 tokens > 200000 maximum"}),
    "stackblitz/bolt.new#7422": (
        400,
        openai_error("input length and `max_tokens` exceed context limit: 86888 + 119866 > 204648, decrease it"),
    ),
    "Cohere": (
        400,
        {"message": "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4503."},
    ),
    "LM Studio": (
        400,
        {"error": "The number of tokens to keep from the initial prompt is greater than the context length."},
    ),
    "MoonshotAI/kimi-cli#2011": (
        400,
        openai_error("Invalid request: Your request exceeded model token limit: 262144 (requested: 269030)"),
    ),
    "zeroclaw-labs/zeroclaw#4124": (400, {"error": {"code": "1261", "message": "Prompt exceeds max length"}}),
    "Zhipu": (400, {"error": {"code": "1261", "message": "Prompt 超长"}}),
    "langgenius/dify#19394": (
        400,
        {"code": 20015, "message": "length of prompt_tokens (57535) must be less than max_seq_len (32768)."},
    ),
    "SambaNova": (
        400,
        openai_error("Input has 9000 tokens, and the model's maximum sequence length is 8192."),
    ),
    "NVIDIA/TensorRT-LLM#9277": (
        400,
        openai_error(
            "The sum of prompt length (9351.0), query length (0) should not exceed max_num_tokens (8192)", code=400
        ),
    ),
    "jjleng/copilot-more#35": (400, openai_error("prompt token count of 93854 exceeds the limit of 90000", code="")),
    "arkavo-org/arkavo-edge#371": (
        400,
        openai_error("The input token count exceeds the maximum number of tokens allowed (1048576)."),
    ),
    "in Chinese": (400, openai_error("请求的输入超过模型最大上下文长度 32768")),
    "in other Chinese words": (400, openai_error("输入长度超过限制")),
}
NOT_TOO_LONG: dict[str, str] = {
    "a rate limit": "Too many tokens. Limit 10 per minute.",
    "the answer's maximum": "max_tokens is too large: 200000. This model supports at most 16384 completion tokens.",
    "a field": "Invalid 'user': string too long. Expected a string with maximum length 64, but got 80 instead.",
    "an image": "Image input too large.",
    "Bedrock's maximum": "The maximum tokens you requested exceeds the model limit of 4096.",
    "TensorRT's maximum": "max_tokens should not exceed max_num_tokens (8192)",
    "in Chinese": "图片数量超过限制",
}
MALFORMED: dict[str, str] = {
    "ggml-org/llama.cpp#13566": "image input is not supported by this server",
    "ggml-org/llama.cpp#10920": "Unsupported param: tools",
    "ggml-org/llama.cpp#25510": "Failed to parse tool call arguments as JSON: [json.exception.parse_error.101] …",
}
MODELS_FAULT = "Failed to parse input at pos 0"  # antoinezambelli/forge#127: the model's own output was malformed


def foundry(name: str, *inside: str) -> JSON:
    """editor-code-assistant/eca#231, pydantic/pydantic-ai#6593."""
    detail = [{"type": "extra_forbidden", "loc": ["body", name, *inside], "msg": "Extra inputs are not permitted"}]
    return {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error", "param": None}


OLD, NEW = "max_tokens", "max_completion_tokens"
USE_NEW = f"Unsupported parameter: '{OLD}' is not supported with this model. Use '{NEW}' instead."
NEW_REFUSED: dict[str, tuple[int, Any]] = {
    "Foundry's Mistral": (422, foundry(NEW)),
    "older models": (400, openai_error(f"Unrecognized request argument supplied: {NEW}")),
    "vLLM": (
        400,
        {"object": "error", "message": repr([{"type": "extra_forbidden", "loc": ("body", NEW)}]), "code": 400},
    ),
    "LiteLLM": (400, openai_error(f"litellm.UnsupportedParamsError: x does not support parameters: ['{NEW}'], for y.")),
    "Groq": (400, openai_error(f"property '{NEW}' is unsupported")),
    "serde": (422, {"detail": f"unknown field `{NEW}`, expected one of `model`, `messages`"}),
    "jsonschema": (400, openai_error(f"Additional properties are not allowed ('{NEW}' was unexpected)")),
    "Gemini": (400, [{"error": {"code": 400, "message": f'Unknown name "{NEW}": Cannot find field.'}}]),
}


ROUTE = "To use function tools, use /v1/responses or set reasoning_effort to 'none'."
TOOLS_REFUSED = openai_error(
    f"Function tools with reasoning_effort are not supported for gpt-5.6 in /v1/chat/completions. {ROUTE}",
    param="reasoning_effort",
)
MAXIMA: dict[str, tuple[Any, int | None]] = {
    "OpenAI": (
        openai_error(
            "max_tokens is too large: 200000. This model supports at most 16384 completion tokens, whereas you provided"
            " 200000.",
            param=OLD,
        ),
        16_384,
    ),
    "AQBot-Desktop/AQBot#93": (
        {
            "error": {
                "message": "Param Incorrect",
                "param": "max_tokens is too large: 8192. This model supports at most 4096 completion tokens.",
            }
        },
        4_096,
    ),
    "deepseek-ai/DeepSeek-V3#69": (
        openai_error("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]"),
        8_192,
    ),
    "open-webui/open-webui#10507": (
        openai_error("<400> InternalError.Algo.InvalidParameter: Range of max_tokens should be [1, 8192]"),
        8_192,
    ),
    "skapadia3214/groq-moa#8": (
        openai_error("max_tokens for `llama-3.1-8b-instant` must be less than or equal to 8000"),
        8_000,
    ),
    "Gitlawb/openclaude#331": (
        openai_error(
            "The parameter `max_completion_tokens` specified in the request are not valid: integer above maximum value,"
            " expected a value <= 12288, but got 32000 instead.",
            param=NEW,
        ),
        12_288,
    ),
    "Anthropic": (
        openai_error("max_tokens: 64000 > 8192, which is the maximum allowed number of output tokens for claude"),
        8_192,
    ),
    "mateaix/mateclaw#481": (
        openai_error(
            "max_tokens=16384 cannot be greater than max_model_len=max_total_tokens=8192. Please request fewer output"
            " tokens. (parameter=max_tokens, value=16384)"
        ),
        8_192,
    ),
    "Gemini": (
        openai_error("maxOutputTokens must be in the range from 1 (inclusive) to 65537 (exclusive)."),
        65_536,
    ),
    "pydantic": ({"detail": [{"loc": ["body", OLD], "msg": "Input should be less than or equal to 4096"}]}, 4_096),
    "charmbracelet/crush#946": (
        {"message": "The maximum tokens you requested exceeds the model limit of 32768"},
        32_768,
    ),
    "langgenius/dify#10390": (
        openai_error(
            "The maximum tokens you requested exceeds the model limit of 4096. Try again with a maximum tokens value"
            " that is lower than 4096."
        ),
        4_096,
    ),
    "a sentence of its own": (openai_error("max_tokens is too large: 10000. The max is 8192."), 8_192),
    "a half-open range": (openai_error("max_tokens must be in (0, 4096]"), 4_096),
    "thousands": (openai_error("max_tokens must be at most 16k."), 16_000),
    "no number": (openai_error("max_tokens is too large.", param=OLD), None),
    "another field": (openai_error("Expected a value <= 2.", param="temperature"), None),
    "the context": (TOO_LONG["vLLM 0.12"][1], None),
}


MAXIMUM_WORDS = [
    "max_tokens must be less than or equal to N",
    "max_tokens cannot be greater than N.",
    "max_tokens cannot exceed N, got 900,000",
    "max_tokens: the maximum value is N",
    "max_tokens must be in [1, N]",
    "max_tokens must be in [1,N].",
    "max_tokens is too large: 900,000. This model supports at most N completion tokens, whereas you provided 900,000.",
    "max_tokens: expected a value <= N, but got 900,000 instead.",
    "max_tokens: 900,000 > N, which is the maximum allowed number of output tokens",
    "max_tokens=900,000 cannot be greater than max_model_len=max_total_tokens=N.",
    "max_completion_tokens must be between 1 and N.",
    "The number of output tokens cannot exceed N",
]
# Numbers that are not the answer's maximum.
OTHER_NUMBERS = [
    "n must be at most 8. You sent max_tokens 500 and n 10.",
    "n must be at most 300. You sent max_tokens 500 and n 400.",
    "You sent max_tokens 500. top_k cannot exceed 1,000.",
    "With max_tokens 500, n must be at most 300.",
    "temperature: must be less than or equal to 1. max_tokens: unsupported",
    "top_k: must be less than or equal to 1000; max_tokens: unsupported",
    "max_tokens must be less than or equal to 1.",
]
NUMBERS = {"512": 512, "8192": 8_192, "8,192": 8_192, "131,072": 131_072, "1,048,576": 1_048_576, "128k": 128_000}


def read(body: Any) -> ErrorBody:
    return read_error((body if isinstance(body, str) else json.dumps(body)).encode())


@pytest.mark.parametrize("report", [report for report in NO_CREDIT if report != "a page"])
def test_no_credit_is_recognised(report: str) -> None:
    assert no_credit(read(NO_CREDIT[report][1]))


@pytest.mark.parametrize("report", RATE_LIMITS)
def test_rate_limit_is_not_taken_for_no_credit_or_a_long_prompt(report: str) -> None:
    error = read(RATE_LIMITS[report])
    assert not no_credit(error)
    assert not context_too_long(error)


@pytest.mark.parametrize("report", TOO_LONG)
def test_prompt_that_is_too_long_is_recognised(report: str) -> None:
    assert context_too_long(read(TOO_LONG[report][1]))


@pytest.mark.parametrize("report", NOT_TOO_LONG)
def test_other_limits_are_not_taken_for_a_long_prompt(report: str) -> None:
    error = read(openai_error(NOT_TOO_LONG[report]))
    assert not context_too_long(error)
    assert not no_credit(error)


@pytest.mark.parametrize("report", MALFORMED)
def test_malformed_request_is_recognised(report: str) -> None:
    assert malformed_request(read(openai_error(MALFORMED[report])))


def test_other_internal_errors_do_not_blame_the_request() -> None:
    for words in (MODELS_FAULT, "The server had an error while processing your request. Sorry about that!", ""):
        assert not malformed_request(read(openai_error(words)))


@pytest.mark.parametrize("report", NEW_REFUSED)
def test_field_that_a_deployment_does_not_take_is_recognised(report: str) -> None:
    assert unknown_fields(read(NEW_REFUSED[report][1])) == (NEW,)


def test_field_with_another_name_for_it_is_recognised() -> None:
    assert OLD in unknown_fields(read(openai_error(USE_NEW, param=OLD, code="unsupported_parameter")))
    assert OLD in unknown_fields(read(openai_error(USE_NEW)))


@pytest.mark.parametrize("words", ["Expected a value <= 1.", "max_tokens is too large: 9.", "Invalid value.", ""])
def test_value_that_is_refused_is_not_an_unknown_field(words: str) -> None:
    assert unknown_fields(read(openai_error(words, param=OLD))) == ()


@pytest.mark.parametrize("report", MAXIMA)
def test_maximum_of_the_model_is_read_from_the_refusal_of_a_larger_one(report: str) -> None:
    body, maximum = MAXIMA[report]
    assert max_output(read(body)) == maximum


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("words", MAXIMUM_WORDS)
def test_maximum_is_read_with_and_without_thousands_separators(words: str, number: str) -> None:
    for param in (None, OLD):
        assert max_output(read(openai_error(words.replace("N", number), param=param))) == NUMBERS[number]


@pytest.mark.parametrize("words", OTHER_NUMBERS)
def test_number_of_another_field_is_not_taken_for_the_maximum(words: str) -> None:
    assert max_output(read(openai_error(words))) is None
    assert max_output(read(openai_error(words, param="n"))) is None


def test_maximum_is_found_beside_the_limits_of_other_fields() -> None:
    problems = {"temperature": 2, "top_k": 1_000, OLD: 4_096}
    detail = [{"loc": ["body", name], "msg": f"Input should be <= {limit}"} for name, limit in problems.items()]
    assert max_output(read({"detail": detail})) == 4_096
    assert max_output(read(openai_error("n must be at most 8, max_tokens at most 4,096", param="n"))) == 4_096


def test_refusal_of_tools_with_reasoning_is_recognised() -> None:
    assert tools_need_no_reasoning(read(TOOLS_REFUSED))
    assert not tools_need_no_reasoning(read(openai_error("Unsupported value: 'minimal'.", param="reasoning_effort")))
    assert not tools_need_no_reasoning(read(openai_error("These tools are not supported.", param="tools")))


LIMITS = {
    "gpt-5": 272_000,
    "vllm-project/vllm#20409": 16_384,
    "vllm-project/vllm#4667": None,
    "vLLM 0.12": 2_048,
    "vLLM's prompt": 32_768,
    "vllm-project/vllm#10440": 1_000,
    "Mistral": 32_768,
    "ggml-org/llama.cpp#19774": None,
    "LiteLLM": 8_000,
    "Anthropic": 200_000,
    "stackblitz/bolt.new#7422": 204_648,
    "Cohere": 4_081,
    "LM Studio": None,
    "MoonshotAI/kimi-cli#2011": 262_144,
    "zeroclaw-labs/zeroclaw#4124": None,
    "Zhipu": None,
    "langgenius/dify#19394": 32_768,
    "SambaNova": 8_192,
    "NVIDIA/TensorRT-LLM#9277": 8_192,
    "jjleng/copilot-more#35": 90_000,
    "arkavo-org/arkavo-edge#371": 1_048_576,
    "in Chinese": 32_768,
    "in other Chinese words": None,
}


@pytest.mark.parametrize("report", LIMITS)
def test_size_of_the_context_window_is_read(report: str) -> None:
    assert context_limit(read(TOO_LONG[report][1])) == LIMITS[report]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "words",
    [
        "This model's maximum context length is N tokens.",
        "The prompt exceeds the context length. The context length is N.",
        "The prompt is longer than the context window: limit of N tokens.",
        "Prompt contains 900,000 tokens, too large for model with N maximum context length",
        "prompt is too long: 900,000 tokens > N maximum",
    ],
)
def test_size_is_read_with_and_without_thousands_separators(words: str, number: str) -> None:
    assert context_limit(read(openai_error(words.replace("N", number)))) == NUMBERS[number]


def test_size_that_no_model_has_is_not_read() -> None:
    assert context_limit(read(openai_error("The maximum context length is 1.5 tokens."))) is None


def test_size_of_the_context_window_is_read_from_llama_cpp() -> None:
    words = "request (4390 tokens) exceeds the available context size (4096 tokens), try increasing it"
    assert context_limit(read(openai_error(words))) == 4_096
