"""What each status and body of the model service means: the error, its billing, and what a retry can do."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from shared.access.identity import ServiceAccess
from shared.errors import (
    ChatError,
    ContentFiltered,
    ContextTooLong,
    InvalidRequest,
    QuotaExhausted,
    RateLimited,
    UpstreamError,
    UpstreamFailure,
    UpstreamResponse,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from shared.model.refusals import from_response
from shared.model.upstream_errors import DeploymentNotFound, NoAnswer, NotAuthorized

JSON = dict[str, Any]
ACCESS = ServiceAccess("The model service rejects the app.")
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def meaning(status: int, body: Any = "", **headers: str) -> ChatError:
    content = body if isinstance(body, str) else json.dumps(body)
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return from_response(UpstreamResponse(status, named, content.encode()), "chat", ACCESS, NOW)


def error(message: str, **fields: Any) -> JSON:
    return {"error": {"message": message, **fields}}


FREE: dict[type[UpstreamFailure], list[int]] = {
    UpstreamUnavailable: [409, 425, 498, 500, 503, 521, 523, 525, 526, 529, 530],
    NoAnswer: [301, 302, 303, 307, 308, 405, 406, 407, 411, 412, 415, 417, 421, 426, 428, 431, 451, 494, 501, 505, 511],
    DeploymentNotFound: [404, 410],
    RateLimited: [429],
    NotAuthorized: [401, 403],
    QuotaExhausted: [402],
}
MAYBE_BILLED: dict[type[UpstreamFailure], list[int]] = {
    UpstreamTimeout: [408, 504, 522, 524],
    UpstreamError: [424, 499, 502, 520, 527, 598],
    NoAnswer: [204, 205],
}


@pytest.mark.parametrize(("kind", "statuses"), FREE.items())
def test_status_of_a_request_that_no_model_processed_is_free(kind: type[UpstreamFailure], statuses: list[int]) -> None:
    for status in statuses:
        failure = meaning(status)
        assert type(failure) is kind
        assert not failure.maybe_billed


@pytest.mark.parametrize(("kind", "statuses"), MAYBE_BILLED.items())
def test_status_that_does_not_show_whether_the_model_ran_may_be_billed(
    kind: type[UpstreamFailure], statuses: list[int]
) -> None:
    for status in statuses:
        failure = meaning(status)
        assert type(failure) is kind
        assert failure.maybe_billed


@pytest.mark.parametrize("status", [*FREE[NoAnswer], *MAYBE_BILLED[NoAnswer]])
def test_status_that_a_retry_does_not_change_says_so(status: int) -> None:
    failure = meaning(status)
    assert failure.final
    assert f"({status}" in failure.message
    assert "Retry the request" not in failure.message
    assert "(405 Use GET)" in meaning(405, error("Use GET.")).message


def test_retired_model_is_not_a_missing_deployment() -> None:
    body = error("The model 'gpt-35-turbo' has been deprecated.", code="ModelDeprecated")
    assert meaning(410, body).message.startswith("The model of deployment 'chat' is retired.")


# Statuses whose body means something else

FLAGGED: dict[str, tuple[int, JSON]] = {
    "OpenRouter": (403, error("Input was flagged", code=403, metadata={"reasons": ["violence"]})),
    "OpenRouter's longer words": (403, error('x requires moderation. Your input was flagged for "violence".')),
    "xAI": (403, {"code": "forbidden", "error": "Content violates usage guidelines."}),
    "LiteLLM": (400, error("x", code="content_policy_violation")),
    "LiteLLM's class": (400, error("litellm.ContentPolicyViolationError: x", type="ContentPolicyViolationError")),
    "DashScope": (400, error("Input data may contain inappropriate content.", code="data_inspection_failed")),
    "DashScope's other code": (400, error("x", code="DataInspectionFailed")),
    "Azure": (400, error("x", code="400", innererror={"code": "ResponsibleAIPolicyViolation"})),
    "Azure's code": (400, error("x", code="content_filter")),
    "OpenAI's reasoning models": (
        400,
        error(
            "Invalid prompt: your prompt was flagged as potentially violating our usage policy.", code="invalid_prompt"
        ),
    ),
    "DeepSeek": (400, error("Content Exists Risk", type="invalid_request_error")),
    "Zhipu": (400, error("系统检测到输入或生成内容可能包含不安全或敏感内容", code="1301")),
    "StepFun": (451, error("The content you provided is blocked.", type="censorship_blocked")),
}


@pytest.mark.parametrize("report", FLAGGED)
def test_stopped_prompt_is_a_content_filter_whatever_the_status(report: str) -> None:
    assert type(meaning(*FLAGGED[report])) is ContentFiltered


LIMITED: dict[str, tuple[int, JSON]] = {
    "API Management's calls": (
        403,
        {"statusCode": 403, "message": "Out of call volume quota. Quota will be replenished in 00:02:00."},
    ),
    "API Management's bandwidth": (403, {"message": "Out of bandwidth quota. Quota will be replenished in 00:02:00."}),
    "GitHub": (403, {"message": "You have exceeded a secondary rate limit."}),
    "code as text": (400, error("Slow down.", code="429")),
    "LiteLLM": (400, error("litellm.RateLimitError: x", type="RateLimitError")),
    "Bedrock": (400, {"message": "Wait before trying again.", "type": "ThrottlingException"}),
    "a gateway": (502, error("Provider returned error", code=429)),
}


@pytest.mark.parametrize("report", LIMITED)
def test_rate_limit_is_one_whatever_the_status(report: str) -> None:
    status, body = LIMITED[report]
    failure = meaning(status, body, retry_after="120")
    assert type(failure) is RateLimited
    assert (failure.pause, failure.maybe_billed) == (120, False)


SPENT: dict[str, tuple[int, JSON]] = {
    "BerriAI/litellm#4208": (
        400,
        error("Budget has been exceeded! Current cost: 0.001, Max budget: 0.0", type="auth_error", code=400),
    ),
    "BerriAI/litellm#14144": (
        400,
        error("litellm.BadRequestError: OpenAIException - Budget has been exceeded! Team=1", code="400"),
    ),
    "BerriAI/litellm#14144's deployment": (
        429,
        error("No deployments available - crossed budget: Exceeded budget for deployment model_name: x"),
    ),
    "LiteLLM's type": (400, error("x", type="budget_exceeded", code="400")),
    "LiteLLM's end user": (400, error("ExceededBudget: End User=a over budget. Spend=0.1, Budget=0.0001")),
}


@pytest.mark.parametrize("report", SPENT)
def test_budget_of_a_gateway_is_a_quota(report: str) -> None:
    assert type(meaning(*SPENT[report])) is QuotaExhausted


MISSING = [
    "",
    "Not Found",
    "404 page not found",
    "Resource not found",
    "Error: 404",
    "The API deployment for this resource does not exist. Please wait and try again.",
    "The model `chat` does not exist or you do not have access to it.",
    "model 'qwen-image' not found, try pulling it first",
    "No endpoints found for x/y.",
    "Invalid URL (POST /v1/chat/completions)",
    "no Route matched with those values",
]
NOT_MISSING = [
    "No endpoints found that support image input",  # JohnnyZ93/oai-compatible-copilot#229
    'No endpoints found that support tool use. Try disabling "x".',  # rbb-dev/Open-WebUI-OpenRouter-pipe#58
    "No endpoints found that support the requested output modalities: image, text",  # HKUDS/DeepTutor#1348
    "No endpoints found matching your data policy.",
    "No allowed providers are available for the selected model.",
    "This is not a chat model and thus not supported in the v1/chat/completions endpoint.",
    "File 'file-1' was not found.",
    "The prompt template 'x' does not exist.",
]


@pytest.mark.parametrize("words", MISSING)
def test_404_about_the_deployment_or_the_url_is_a_missing_deployment(words: str) -> None:
    assert type(meaning(404, error(words) if words else "<html>404</html>")) is DeploymentNotFound
    assert type(meaning(404, {"detail": words})) is DeploymentNotFound


@pytest.mark.parametrize("words", NOT_MISSING)
def test_404_about_the_request_is_an_invalid_request_in_the_services_words(words: str) -> None:
    failure = meaning(404, error(words, code=404))
    assert type(failure) is InvalidRequest
    assert failure.message == words
    code = error(words, code="model_not_found")
    assert type(meaning(404, code)) is DeploymentNotFound


def test_403_for_a_model_that_a_project_may_not_use_is_a_missing_deployment() -> None:
    body = error("Project `p` does not have access to model `m`", code="model_not_found")
    assert type(meaning(403, body)) is DeploymentNotFound


@pytest.mark.parametrize("words", ["", "Access denied due to invalid subscription key.", "Public access is disabled."])
def test_other_403_is_about_the_credentials(words: str) -> None:
    assert type(meaning(403, error(words))) is NotAuthorized


def test_too_long_prompt_is_one_behind_a_failed_dependency_too() -> None:
    assert type(meaning(424, error("This model's maximum context length is 4096 tokens."))) is ContextTooLong


def test_request_larger_than_a_minutes_limit_is_no_rate_limit() -> None:
    """Waiting does not help: cline/cline#4971."""
    words = "Request too large for model `x` on tokens per minute (TPM): Limit 10000, Requested 15088"
    assert type(meaning(413, error(words, code="rate_limit_exceeded", type="tokens"))) is InvalidRequest
