"""What services mean by their refusals, where status and code do not say it: recognised by their words."""

import re
from collections.abc import Iterator

from shared.model.error_body import ErrorBody

_NUMBER = r"(\d[\d,]*k?)"  # "8192", "8,192", "8k"
_MIN_LIMIT = 256  # tokens: a smaller number is the limit of another field, such as n or temperature


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


def _tokens(match: re.Match[str]) -> int:
    """The number that a pattern of several captures with its only group that takes part."""
    number = str(match[match.lastindex or 0]).replace(",", "").lower()
    return int(number[:-1]) * 1_000 if number.endswith("k") else int(number)


# OpenAI's, one-api's, Kimi's, DashScope's and LiteLLM's codes and types.
_NO_CREDIT_KINDS = _any_of(
    r"insufficient_?(\w+_)?(quota|balance|credits?|funds)",
    "exceeded_current_quota",
    r"billing_\w+",
    "arrearage",
    "budget_?exceeded",
)
# langchain-ai/langchainjs#1929, chatanywhere/GPT_API_free#229; DeepSeek's (continuedev/continue#9942), Anthropic's,
# OpenRouter's and xAI's words.
_NO_CREDIT_WORDS = _any_of(
    "exceeded your current quota",
    "insufficient (balance|credits?|funds|quota)",
    "credit balance is too low",
    r"(no|out of|requires? more|used all available) credits",
    "billing hard limit",
    "check your billing details",
    "budget has been exceeded|exceeded ?budget",  # BerriAI/litellm#4208, BerriAI/litellm#14144
)
_TEMPORARY_LIMIT_WORDS = _any_of(  # Gemini says "exceeded your current quota" of its rate limits too
    r"(retry|try again) (in|after)", r"per[ _](second|min|hour|day)", "rate.limit", r"\b[RT]PM\b"
)


def no_credit(error: ErrorBody) -> bool:
    """True if the account has no credit or budget left, so that waiting does not help."""
    if _NO_CREDIT_KINDS.search(error.kind):
        return True
    return bool(_NO_CREDIT_WORDS.search(error.message)) and not _TEMPORARY_LIMIT_WORDS.search(error.message)


# OpenAI's code, llama.cpp's (ggml-org/llama.cpp#15780), LiteLLM's, GitHub's.
_TOO_LONG_KINDS = _any_of("context_?(length|window|size|limit)", "max_prompt_tokens", "tokens_limit_reached")
_TOO_LONG_WORDS = _any_of(
    # OpenAI, vLLM (vllm-project/vllm#20409, ogx-ai/ogx#4534), Mistral, DeepSeek, xAI, SambaNova
    "maximum (context|prompt|model|input|sequence) (length|window|size|limit)",
    "context (length|window|size|limit)[^.]{0,40}(exceed|overflow|full)",  # ggml-org/llama.cpp#19774
    # llama.cpp (#17284), Ollama, LiteLLM, LM Studio
    "(exceed|(larger|longer|greater) than)[^.]{0,60}context (length|window|size|limit)",
    # Anthropic, vllm-project/vllm#10440, Bedrock
    r"(?<!image )(prompt|input|conversation|messages?)( \([^)]*\))?( is| are)? too (long|large)",
    r"reduce (the length of )?(the|your) (input|message|prompt)",
    "(input|prompt) tokens? (count[^.]{0,40} )?exceed",  # gpt-5, Gemini, Copilot (jjleng/copilot-more#35)
    r"tokens in the (prompt|input)[^.]{0,40} exceed",  # Cohere
    r"exceed\w* (the )?model token limit",  # MoonshotAI/kimi-cli#2011
    "(prompt|input)[^.]{0,40} exceeds? (the )?max(imum)? length|超长",  # Zhipu (zeroclaw-labs/zeroclaw#4124)
    # SiliconFlow (langgenius/dify#19394), NVIDIA/TensorRT-LLM#9277
    "prompt[^.]{0,20}(length|tokens)[^!;]{0,60}max_(seq_len|num_tokens|input_len)",
    "(上下文|输入)[^。]{0,20}(超|过长)|超[^。]{0,12}(上下文|输入长度)",
    r"max_(completion_)?tokens must be at least 1, got -",  # vllm-project/vllm#4667: nothing is left for the answer
    r"context (the )?overflows|context length of only|ContextWindowExceeded",  # LM Studio, LiteLLM
    r"`inputs` (tokens \+|must have less)|range of input length|max size: [\d,]+ tokens",  # TGI, DashScope, GitHub
    r"current length is [\d,]+ while limit is",  # Cerebras
)
# llama.cpp answers 500 to some malformed requests (ggml-org/llama.cpp#13566, #10920, #25510).
_MALFORMED_WORDS = _any_of(
    "(image|audio|video) input is not supported",
    "unsupported (param|content)",
    "failed to parse tool call arguments",
    "failed to (load|download|decode) (the )?(image|audio)",
    r"(param|parameter) requires",
    "not supported with tools",
    r"must (be|contain) (a|an|one of|either|base64|data urls)\b|expected '\w+' to be|missing '?\w+'? (field|in)",
    r"json\.exception\.(out_of_range\.403|type_error\.302)|json schema conversion failed",
)


def context_too_long(error: ErrorBody) -> bool:
    """True if the prompt, alone or with the answer's maximum, exceeds the model's context window. "Too many tokens"
    alone is a rate limit's wording."""
    if _TOO_LONG_KINDS.search(error.kind):
        return True
    return bool(_TOO_LONG_WORDS.search(error.message)) and not _TEMPORARY_LIMIT_WORDS.search(error.message)


def malformed_request(error: ErrorBody) -> bool:
    """True if an internal error's words blame the request, so that the same request fails again."""
    return bool(_MALFORMED_WORDS.search(error.message))


_UNKNOWN_KINDS = _any_of("unsupported_(param|value)", "unknown_param", "extra_forbidden", "unsupportedparams")
_UNKNOWN_WORDS = _any_of("^(unsupported|unknown) ", "extra inputs are not permitted", "unrecognized request argument")
_UNKNOWN_FIELDS = _any_of(  # each captures one name, or several
    r"unrecognized request arguments? supplied: ([\w, ]+)",  # OpenAI's older models
    r"(?:unknown|unsupported|unrecognized|unexpected) (?:keyword )?(?:param(?:eter)?|argument|field|name|property)s?:?"
    r" [\"'`]?(\w+)",
    r"(\w+): extra inputs are not permitted",
    r"[\"'`](\w+)[\"'`] (?:was unexpected|is (?:unsupported|not (?:supported|permitted|allowed)))",
    r"does not support parameters: \[([^\]]*)\]",  # LiteLLM's
)


def unknown_fields(error: ErrorBody) -> tuple[str, ...]:
    """The fields of the request that the deployment does not take, whatever their value."""
    matches = _UNKNOWN_FIELDS.findall(error.message)
    named = tuple(name for groups in matches for group in groups for name in re.findall(r"\w+", group))
    if error.fields and (_UNKNOWN_KINDS.search(error.kind) or _UNKNOWN_WORDS.search(error.message)):
        return tuple(dict.fromkeys((*error.fields, *named)))
    return named


_LIMIT_FIELDS = _any_of(r"max(?:imum)?[_ ]?(?:(?:completion|output|new)[_ ]?)?tokens", "(?:completion|output) tokens")
# Between the name of the answer's maximum and a number: the number is this field's.
_OTHER_FIELDS = _any_of(
    r"\b(?:n|temperature|seed|stop|messages|prompt|best_of|logprobs|top_\w+|\w+_penalty|\w*budget\w*)\b"
)
_MAXIMUM_NUMBERS = _any_of(  # each captures the model's maximum
    f"at most {_NUMBER}",  # OpenAI (diffbot/code-gpt-docs#284)
    # DeepSeek (deepseek-ai/DeepSeek-V3#69), DashScope (open-webui/open-webui#10507)
    rf"[\[(]\s*[\d,]+?\s*,\s*{_NUMBER}\s*\]",
    rf"less than or equal to \W?{_NUMBER}",  # Groq (skapadia3214/groq-moa#8), pydantic
    f"<= ?{_NUMBER}",  # Volcengine (Gitlawb/openclaude#331)
    f"> {_NUMBER}, which is the maximum",  # Anthropic
    rf"max_model_len\D{{0,30}}{_NUMBER}",  # vLLM (mateaix/mateclaw#481)
    rf"(?:cannot|can't|must not|may not) (?:exceed|be (?:greater|larger|more|higher) than)\D{{0,40}}{_NUMBER}",
    rf"max(?:imum)? (?:value |allowed )*(?:is|of)\D{{0,20}}{_NUMBER}",
    f"model limit of {_NUMBER}",  # Bedrock (charmbracelet/crush#946)
    rf"(?:between|from) [\d,]+ (?:\(inclusive\) )?(?:and|to) {_NUMBER}",
)
_MAX_DISTANCE = 100  # characters from the field's name to its number


def max_output(error: ErrorBody) -> int | None:
    """The most output tokens that the model can return, if a refusal of a larger maximum names it."""
    if context_too_long(error):
        return None
    only_field = bool(error.fields) and all(map(_LIMIT_FIELDS.search, error.fields))
    for sentence in _sentences(error.message):
        for match in _MAXIMUM_NUMBERS.finditer(sentence):
            exclusive = sentence.startswith(" (exclusive)", match.end())  # Gemini
            maximum = _tokens(match) - exclusive
            if maximum >= _MIN_LIMIT and (only_field or _is_about_output(sentence, match)):
                return maximum
    return None


def _sentences(message: str) -> Iterator[str]:
    """The sentences; one that names no field is joined to the one before it, such as "The max is 8192."."""
    sentence = ""
    for following in re.split(r"[.;!?]\s", message):
        if sentence and not _LIMIT_FIELDS.search(following) and not _OTHER_FIELDS.search(following):
            sentence += f", {following}"
        else:
            if sentence:
                yield sentence
            sentence = following
    yield sentence


def _is_about_output(sentence: str, match: re.Match[str]) -> bool:
    """True if the name of the answer's maximum is close before the number, or directly behind it."""
    number = match.start(match.lastindex or 0)
    _, *after_names = _LIMIT_FIELDS.split(sentence[max(0, number - _MAX_DISTANCE) : number])
    if after_names and not _OTHER_FIELDS.search(after_names[-1]):
        return True
    return bool(_LIMIT_FIELDS.match(sentence, match.end() + 1))


_TOOLS_WORDS = _any_of(r"\btools\b.{0,80}not supported", r"not supported.{0,40}\btools\b")


def tools_need_no_reasoning(error: ErrorBody) -> bool:
    """True if a model that reasons refuses function tools unless reasoning_effort is none (openai/openai-openapi#541,
    BerriAI/litellm#34569: some refuse them also if no effort is sent, because they have a default one)."""
    about_effort = "reasoning_effort" in (error.param, *error.fields) or "reasoning_effort" in error.message
    return about_effort and bool(_TOOLS_WORDS.search(error.message))


_CONTEXT_NUMBERS = _any_of(  # each captures the size of the context window
    f"maximum (?:context|prompt|model|input|sequence) (?:length|window|size|limit)(?: is| of)? {_NUMBER}",
    f"{_NUMBER} maximum context",  # Mistral
    # Anthropic (stackblitz/bolt.new#7422), llama.cpp
    rf"context (?:length|window|size|limit)[^.\d]{{0,20}}(?:[\d,]+ \+ [\d,]+ > )?{_NUMBER}(?![\d,]* \+)",
    f"> {_NUMBER} maximum",  # Anthropic
    f"limit of {_NUMBER}",
    f"token limit: {_NUMBER}",  # Kimi
    rf"max_(?:seq_len|num_tokens|input_len) \({_NUMBER}",  # SiliconFlow, TensorRT-LLM
    rf"tokens in the (?:prompt|input)[^.\d]{{0,40}} exceed {_NUMBER}",  # Cohere
    rf"tokens allowed \({_NUMBER}",  # Gemini (arkavo-org/arkavo-edge#371)
    rf"最大[^\d。]{{0,16}}{_NUMBER}",
)


def context_limit(error: ErrorBody) -> int | None:
    """The tokens of the model's context window, if a refusal of a longer prompt names them."""
    match = _CONTEXT_NUMBERS.search(error.message)
    return _tokens(match) if match and _tokens(match) >= _MIN_LIMIT else None
