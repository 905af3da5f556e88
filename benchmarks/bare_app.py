"""What cold_start compares the app with: a chat on Azure Functions as a tutorial writes it, with the SDKs alone.

One route: reads the session's messages, writes the new one, streams the model's answer on. Signed in with the managed
identity; no limits, prices, retries or locks.
"""

import os
import uuid
from collections.abc import AsyncIterator
from typing import Any

import azure.functions as func
from azure.data.tables.aio import TableClient
from azure.identity.aio import DefaultAzureCredential, get_bearer_token_provider
from azurefunctions.extensions.http.fastapi import Request, Response, StreamingResponse
from openai import AsyncOpenAI

app = func.FunctionApp()
credential = DefaultAzureCredential()
model = AsyncOpenAI(
    base_url=os.environ["AZURE_OPENAI_ENDPOINT"],
    api_key=get_bearer_token_provider(credential, "https://cognitiveservices.azure.com/.default"),
)
table = TableClient(os.environ["TABLES_ENDPOINT"], "messages", credential=credential)


@app.route("api/chat", methods=["POST"])
async def chat(req: Request) -> Response:
    body = await req.json()
    session, text = body["session_id"], body["message"]
    rows = table.query_entities("PartitionKey eq @session", parameters={"session": session})
    messages = [{"role": row["role"], "content": row["content"]} async for row in rows]
    await write(session, len(messages), "user", text)
    messages.append({"role": "user", "content": text})
    return StreamingResponse(answer(session, messages), media_type="text/event-stream")


async def answer(session: str, messages: list[Any]) -> AsyncIterator[bytes]:
    parts = []
    stream = await model.chat.completions.create(model="chat", messages=messages, stream=True)
    async for chunk in stream:
        if chunk.choices and (part := chunk.choices[0].delta.content):
            parts.append(part)
            yield f"data: {chunk.model_dump_json()}\n\n".encode()
    await write(session, len(messages), "assistant", "".join(parts))


async def write(session: str, number: int, role: str, text: str) -> None:
    key = f"{number:06}-{uuid.uuid4().hex}"
    await table.create_entity({"PartitionKey": session, "RowKey": key, "role": role, "content": text})
