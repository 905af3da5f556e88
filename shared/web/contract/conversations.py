"""openai/v1/conversations. https://platform.openai.com/docs/api-reference/conversations"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from shared.web.contract.fields import Wire
from shared.web.contract.response_items import InputItem
from shared.web.contract.responses import Metadata

MAX_NEW_ITEMS = 20  # OpenAI's, of one request


class NewConversation(Wire):
    """A field that is null counts as absent."""

    items: Annotated[list[InputItem], Field(max_length=MAX_NEW_ITEMS)] = Field(default_factory=list)
    metadata: Metadata = Field(default_factory=dict)


class ConversationUpdate(Wire):
    """`metadata` replaces what the conversation has; null removes it."""

    metadata: Metadata


class NewItems(Wire):
    items: Annotated[list[InputItem], Field(min_length=1, max_length=MAX_NEW_ITEMS)]


class ConversationAnswer(BaseModel):
    """A conversation. `created_at`: Unix time in seconds."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


class DeletedConversation(BaseModel):
    id: str
    object: Literal["conversation.deleted"]
    deleted: Literal[True]
