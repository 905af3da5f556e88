"""openai/v1/responses: the request and what is answered. https://platform.openai.com/docs/api-reference/responses

The tag of a union's member must not be a field's name: web/responses/validation.py leaves tags out of paths.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StringConstraints, Tag

from shared.domain.calls import ReasoningEffort
from shared.web.contract.fields import NonEmpty, Wire
from shared.web.contract.response_items import InputItems, by_type, text_or

MAX_PAGE_ITEMS = 100  # of a list of items
LOGPROBS, COST = "message.output_text.logprobs", "usage.cost_usd"
Include = Literal[  # COST is this app's own
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "reasoning.encrypted_content",
    "usage.cost_usd",
]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    Field(max_length=16),
]


class FunctionTool(Wire):
    type: Literal["function"]
    name: NonEmpty
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class CustomTool(Wire):
    type: Literal["custom"]
    name: NonEmpty
    description: str | None = None
    format: dict[str, Any] | None = None


class HostedTool(BaseModel):
    """A tool that OpenAI runs. Only `web_search*` and `namespace` are accepted: they are left out."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: NonEmpty


def _tool_type(value: Any) -> str:
    name = by_type()(value)
    return f"{name} tool" if name in ("function", "custom") else "hosted tool"


Tool = Annotated[
    Annotated[FunctionTool, Tag("function tool")]
    | Annotated[CustomTool, Tag("custom tool")]
    | Annotated[HostedTool, Tag("hosted tool")],
    Discriminator(_tool_type),
]


class NamedTool(Wire):
    type: Literal["function", "custom"]
    name: NonEmpty


class AllowedTools(Wire):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[dict[str, Any]], Field(min_length=1)]


def _choice_type(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    name = by_type()(value)
    return {"function": "named", "custom": "named", "allowed_tools": name}.get(name, "hosted")


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("text")]
    | Annotated[NamedTool, Tag("named")]
    | Annotated[AllowedTools, Tag("allowed_tools")]
    | Annotated[HostedTool, Tag("hosted")],
    Discriminator(_choice_type),
]


class PlainFormat(Wire):
    type: Literal["text", "json_object"]


class SchemaFormat(Wire):
    """`schema`: a JSON schema that the answer's text must match."""

    model_config = ConfigDict(extra="forbid", strict=True, serialize_by_alias=True)

    type: Literal["json_schema"]
    name: NonEmpty
    json_schema: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


def _format_type(value: Any) -> str:
    return "schema format" if by_type()(value) == "json_schema" else "plain format"


Format = Annotated[
    Annotated[PlainFormat, Tag("plain format")] | Annotated[SchemaFormat, Tag("schema format")],
    Discriminator(_format_type),
]


class TextOptions(Wire):
    format: Format | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningOptions(Wire):
    """`summary`, `generate_summary` and `context` have no effect: chat completions have no summaries."""

    effort: ReasoningEffort | Literal["max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: str | None = None
    mode: Literal["standard"] | None = None


class ConversationId(Wire):
    id: NonEmpty


class ResponseStreamOptions(Wire):
    include_obfuscation: bool | None = None


class ResponseRequest(Wire):
    """A request for a response. A field that is null counts as absent. `max_output_tokens` includes reasoning tokens.
    `include`: `usage.cost_usd` adds the cost in USD beside the usage. `client_metadata`: ignored."""

    model: NonEmpty
    input: Annotated[
        Annotated[str, Tag("text")] | Annotated[InputItems, Tag("items")],
        Discriminator(text_or("items")),
    ]
    instructions: str | None = None
    previous_response_id: NonEmpty | None = None
    conversation: (
        Annotated[
            Annotated[NonEmpty, Tag("text")] | Annotated[ConversationId, Tag("object")],
            Discriminator(text_or("object")),
        ]
        | None
    ) = None
    store: bool = True
    stream: bool = False
    stream_options: ResponseStreamOptions | None = None
    include: list[Include] = Field(default_factory=list)
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    text: TextOptions = TextOptions()
    reasoning: ReasoningOptions | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncation: Literal["disabled", "auto"] = "disabled"
    service_tier: Literal["auto", "default"] = "auto"
    metadata: Metadata = Field(default_factory=dict)
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    client_metadata: Any = None


class InputTokensDetails(BaseModel):
    cached_tokens: int
    cache_write_tokens: int


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """`cost_usd` exists if the request includes `usage.cost_usd`; null if the price is not known."""

    model_config = ConfigDict(extra="allow")

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(BaseModel):
    code: str
    message: str
    type: str


class IncompleteDetails(BaseModel):
    """`reason`: max_output_tokens, content_filter, or stopped (api/sessions/{session_id}/stop)."""

    reason: str


class ResponseAnswer(BaseModel):
    """A response. All keys but `warnings` are always present. `warnings`: what of the request was left out."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["completed", "incomplete", "in_progress", "failed"]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    output: list[dict[str, Any]]
    usage: ResponseUsage | None
    model: str
    instructions: str | None
    previous_response_id: str | None
    conversation: ConversationId | None
    store: bool
    background: bool
    tools: list[dict[str, Any]]
    tool_choice: str | dict[str, Any]
    parallel_tool_calls: bool
    max_tool_calls: int | None
    text: dict[str, Any]
    reasoning: dict[str, Any]
    max_output_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    presence_penalty: float
    frequency_penalty: float
    truncation: str
    service_tier: str
    metadata: dict[str, str]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    warnings: list[str] | None = None


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemsAnswer(BaseModel):
    """A page of items. The next one: `after` is `last_id`."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
