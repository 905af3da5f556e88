"""Input items of openai/v1/responses and conversations: those that OpenAI's clients send, and as a turn keeps them.

People send back what an answer had (openai-python#3008), so a field that has no meaning here is ignored in an item:
status, annotations, log probabilities, and the id of an item that is sent whole.
https://platform.openai.com/docs/api-reference/responses/create#responses-create-input
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from shared.domain.conversation import Item
from shared.web.contract.fields import NonEmpty

MAX_ITEMS = 2_048  # of one request: as many as messages on openai/*


class _Sent(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


def by_type(default: str = "") -> Callable[[Any], str]:
    """A discriminator of objects by their `type`; `default`: without one."""

    def type_of(value: Any) -> str:
        name = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return default if name is None else str(name)

    return type_of


def text_or(other: str) -> Callable[[Any], str]:
    """A discriminator of text and something else."""
    return lambda value: "text" if isinstance(value, str) else other


class InputText(_Sent):
    type: Literal["input_text"]
    text: str

    def part(self) -> dict[str, Any]:
        return {"type": self.type, "text": self.text}


class InputImage(_Sent):
    """`image_url`: a URL, or a data URL."""

    type: Literal["input_image"]
    image_url: NonEmpty
    detail: Literal["auto", "low", "high", "original"] | None = None

    def part(self) -> dict[str, Any]:
        detail = "high" if self.detail == "original" else self.detail  # chat completions know no original
        return {"type": self.type, "image_url": self.image_url, "detail": detail or "auto"}


class InputFile(_Sent):
    """`file_data`: a data URL."""

    type: Literal["input_file"]
    file_data: NonEmpty
    filename: str | None = None

    def part(self) -> dict[str, Any]:
        return {"type": self.type, "file_data": self.file_data} | ({"filename": self.filename} if self.filename else {})


class OutputText(_Sent):
    type: Literal["output_text"]
    text: str

    def part(self) -> dict[str, Any]:
        return {"type": self.type, "text": self.text, "annotations": [], "logprobs": []}


class Refusal(_Sent):
    type: Literal["refusal"]
    refusal: str

    def part(self) -> dict[str, Any]:
        return {"type": self.type, "refusal": self.refusal}


Part = Annotated[
    Annotated[InputText, Tag("input_text")]
    | Annotated[InputImage, Tag("input_image")]
    | Annotated[InputFile, Tag("input_file")]
    | Annotated[OutputText, Tag("output_text")]
    | Annotated[Refusal, Tag("refusal")],
    Discriminator(by_type()),
]
Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Part], Tag("parts")],
    Discriminator(text_or("parts")),
]


class MessageItem(_Sent):
    type: Literal["message"] | None = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: Content

    def item(self) -> Item:
        texts = "output_text" if self.role == "assistant" else "input_text"
        if isinstance(self.content, str):
            parts = [_text_part(texts, self.content)]
        else:
            parts = [
                _text_part(texts, part.text) if isinstance(part, InputText | OutputText) else part.part()
                for part in self.content
            ]
        return {"type": "message", "role": self.role, "content": parts}


class FunctionCall(_Sent):
    type: Literal["function_call"]
    call_id: NonEmpty
    name: NonEmpty
    arguments: str

    def item(self) -> Item:
        return self.model_dump()


class CustomToolCall(_Sent):
    type: Literal["custom_tool_call"]
    call_id: NonEmpty
    name: NonEmpty
    input: str

    def item(self) -> Item:
        return self.model_dump()


class _CallOutput(_Sent):
    type: str
    call_id: NonEmpty
    output: Content

    def item(self) -> Item:
        output = self.output if isinstance(self.output, str) else [part.part() for part in self.output]
        return {"type": self.type, "call_id": self.call_id, "output": output}


class FunctionCallOutput(_CallOutput):
    type: Literal["function_call_output"]


class CustomToolCallOutput(_CallOutput):
    type: Literal["custom_tool_call_output"]


class Reasoning(_Sent):
    """Reasoning of an earlier answer. It is kept, and not sent to the model: chat completions have no place for it."""

    type: Literal["reasoning"]
    summary: Any = None
    content: Any = None
    encrypted_content: Any = None

    def item(self) -> Item:
        item = {"type": self.type, "summary": _objects(self.summary)}
        if self.content:
            item["content"] = _objects(self.content)
        return item | ({"encrypted_content": self.encrypted_content} if self.encrypted_content else {})


class ItemReference(_Sent):
    """A stored item of an earlier response or conversation, in place of its content."""

    type: Literal["item_reference"] | None = "item_reference"
    id: NonEmpty


NewItem: TypeAlias = (
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionCallOutput, Tag("function_call_output")]
    | Annotated[CustomToolCall, Tag("custom_tool_call")]
    | Annotated[CustomToolCallOutput, Tag("custom_tool_call_output")]
    | Annotated[Reasoning, Tag("reasoning")]
)


def _item_type(value: Any) -> str:
    """The easy form of a message has no type, and nor may a reference (Vercel AI SDK, openai-agents)."""
    is_reference = isinstance(value, dict) and "id" in value and "role" not in value
    return by_type("item_reference" if is_reference else "message")(value)


InputItem = Annotated[NewItem | Annotated[ItemReference, Tag("item_reference")], Discriminator(_item_type)]
InputItems = Annotated[list[InputItem], Field(max_length=MAX_ITEMS)]


def _text_part(kind: str, text: str) -> dict[str, Any]:
    return {"type": kind, "text": text} | ({"annotations": [], "logprobs": []} if kind == "output_text" else {})


def _objects(value: Any) -> list[Any]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
