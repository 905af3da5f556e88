"""Azure Cosmos DB for Table as a client meets it: a proxy in front of Azurite that adds the documented differences.

https://learn.microsoft.com/azure/cosmos-db/table/faq, and the answers recorded in azure-data-tables' own tests
(https://github.com/Azure/azure-sdk-for-python, sdk/tables/azure-data-tables/tests, `*_cosmos*`). What it can't show:
consistency levels, request units, and how the service counts the bytes of a transaction.
"""

import asyncio
import json
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import h11

from local.azurite import ACCOUNT, KEY
from shared.storage.table_service import SharedKey
from tests.support.loopback import Loopback, Message, Wire

MAX_BATCH_BYTES = 2_000_000
MAX_ROW_KEY_BYTES = 255
_KEY = SharedKey(ACCOUNT, KEY)
_RESERVED = {"id", "rid", "etag", "resourceid"}
_ROW_KEY = re.compile(rb"RowKey(?:='((?:[^']|'')*)'\)|\": \"([^\"]*)\")")
_INDEX = re.compile(rb'("value"\s*:\s*")\d+:')
_SUBJECT = re.compile(rb"(?<=\r\n\r\n)[{].*?[}](?=\r\n--)", re.DOTALL)  # the entity of a write in a transaction
_RESOURCE = b"The specified resource does not exist."


def connection_string(port: int) -> str:
    """azure-data-tables takes `localhost` for Azure Cosmos DB's emulator."""
    endpoint = f"http://localhost:{port}/{ACCOUNT}"
    return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};TableEndpoint={endpoint};"


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class CosmosTables(Loopback):
    """`every`: of so many requests one is refused with 429; 0: none."""

    def __init__(self, azurite_port: int, *, every: int = 7) -> None:
        super().__init__()
        self.requests = 0
        self.refused = 0
        self.pages = 0
        self._azurite_port = azurite_port
        self._every = every
        self._random = random.Random(0)
        self._unread: dict[str, list[list[Any]]] = {}  # pages, by continuation token

    async def converse(self, wire: Wire) -> None:
        while request := await wire.message():
            answer = await self._answer(request)
            await wire.send(
                h11.Response(
                    status_code=answer.status,
                    headers=[("Content-Length", str(len(answer.body))), *answer.headers.items()],
                ),
                h11.Data(data=answer.body),
                h11.EndOfMessage(),
            )
            if wire.http.our_state is not h11.DONE or wire.http.their_state is not h11.DONE:
                return
            wire.http.start_next_cycle()

    async def _answer(self, request: Message) -> Answer:
        assert isinstance(request.head, h11.Request)
        method, target = request.head.method.decode(), request.head.target.decode()
        headers = {name.decode().lower(): value.decode() for name, value in request.head.headers}
        is_batch = target.endswith("/$batch")
        self.requests += 1
        if self._every and self.requests % self._every == 0:
            self.refused += 1
            return _throttled(is_batch=is_batch)
        if refusal := _refusal(method, target, request.body, is_batch=is_batch):
            return refusal
        if method == "GET" and urlsplit(target).path.endswith("()"):
            return await self._page(target, headers)
        body = request.body
        if headers.pop("x-http-method", "") == "MERGE":
            method = "PATCH"
            headers["authorization"] = await _KEY.header(urlsplit(target).path, headers["x-ms-date"])
        return _differing(await self._forward(method, target, headers, body))

    async def _page(self, target: str, headers: Mapping[str, str]) -> Answer:
        """The next rows of a query, in no order, with a token if there are more; some pages are empty."""
        url = urlsplit(target)
        options = dict(parse_qsl(url.query))
        self.pages += 1
        if "NextPartitionKey" in options:
            token = json.loads(options["NextPartitionKey"])["token"]
            pages = self._unread[token]  # not removed: a client may send the request again
        else:
            relayed = {name: value for name, value in options.items() if name in ("$filter", "$select")}
            rows = await self._all(url.path, relayed, headers)
            if isinstance(rows, Answer):
                return rows
            self._random.shuffle(rows)
            size = max(1, min(int(options.get("$top", 1_000)), -(-len(rows) // 3)))
            pages = [rows[start : start + size] for start in range(0, len(rows), size)]
            pages = [[], *pages] if len(rows) > 1 else pages or [[]]
        continuation = {}
        if pages[1:]:
            token = f"+RID:{len(self._unread)}=="
            self._unread[token] = pages[1:]
            text = json.dumps({"token": token, "range": {"min": "", "max": "FF"}})
            continuation = {"x-ms-continuation-NextPartitionKey": text, "x-ms-continuation-NextRowKey": "NA"}
        return _json(200, {"value": pages[0], "odata.metadata": "x"}, continuation)

    async def _all(self, path: str, options: Mapping[str, str], headers: Mapping[str, str]) -> list[Any] | Answer:
        rows, following = list[Any](), dict[str, str]()
        while True:
            query = "&".join(f"{name}={quote(value, safe='')}" for name, value in {**options, **following}.items())
            answer = await self._forward("GET", f"{path}?{query}", headers, b"")
            if answer.status != 200:
                return _differing(answer)
            rows += json.loads(answer.body)["value"]
            prefix = "x-ms-continuation-"
            following = {
                f"Next{kind}Key": answer.headers[f"{prefix}next{kind.lower()}key"]
                for kind in ("Partition", "Row")
                if f"{prefix}next{kind.lower()}key" in answer.headers
            }
            if not following:
                return rows

    async def _forward(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Answer:
        azurite = Wire(*await asyncio.open_connection("127.0.0.1", self._azurite_port), server=False)
        try:
            relayed = [(name, value) for name, value in headers.items() if name not in ("content-length", "connection")]
            await azurite.send(
                h11.Request(method=method, target=target, headers=[*relayed, ("Content-Length", str(len(body)))]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            )
            answer = await azurite.message()
        finally:
            azurite.close()
        if answer is None or not isinstance(answer.head, h11.Response):
            raise ConnectionResetError("Azurite disconnected")
        received = {name.decode().lower(): value.decode() for name, value in answer.head.headers}
        for name in ("content-length", "transfer-encoding", "connection", "keep-alive"):
            received.pop(name, None)
        return Answer(answer.head.status_code, answer.body, received)


def _refusal(method: str, target: str, body: bytes, *, is_batch: bool) -> Answer | None:
    if method == "PATCH" or (is_batch and b"\r\nPATCH " in body):
        return _error(400, "InvalidInput", "One of the input values is invalid.")
    if is_batch and len(body) > MAX_BATCH_BYTES:
        return _error(413, "RequestBodyTooLarge", "The request body is too large.")
    for match in _ROW_KEY.finditer(unquote(target).encode() + body):
        if len(next(filter(None, match.groups()), b"")) > MAX_ROW_KEY_BYTES:
            return _error(400, "KeyValueTooLarge", "The row key is too large.")
    for entity in _SUBJECT.findall(body) if is_batch else [body] if body else []:
        if {name.lower() for name in json.loads(entity)} & _RESERVED:
            return _error(400, "PropertyNameInvalid", "The property name is reserved.")
    return None


def _differing(answer: Answer) -> Answer:
    """Azurite's answer with the codes and texts of Cosmos."""
    body = answer.body
    if answer.status == 404 or b"HTTP/1.1 404" in body:
        body = re.sub(rb"TableNotFound|EntityNotFound", b"ResourceNotFound", body)
        body = body.replace(b"The table specified does not exist.", _RESOURCE)
    headers = {name: value for name, value in answer.headers.items() if name != "x-ms-error-code"}
    return Answer(answer.status, _INDEX.sub(rb"\1", body), headers)


def _throttled(*, is_batch: bool) -> Answer:
    refused = _error(429, "TooManyRequests", "The request rate is too large.", {"x-ms-retry-after-ms": "3"})
    if not is_batch:
        return refused
    part = (
        b"--batchresponse_1\r\nContent-Type: multipart/mixed; boundary=changesetresponse_1\r\n\r\n"
        b"--changesetresponse_1\r\nContent-Type: application/http\r\nContent-Transfer-Encoding: binary\r\n\r\n"
        b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\n\r\n"
        + refused.body
        + b"\r\n--changesetresponse_1--\r\n--batchresponse_1--\r\n"
    )
    return Answer(202, part, {"Content-Type": "multipart/mixed; boundary=batchresponse_1"})


def _error(status: int, code: str, text: str, headers: Mapping[str, str] | None = None) -> Answer:
    return _json(status, {"odata.error": {"code": code, "message": {"lang": "en-us", "value": text}}}, headers or {})


def _json(status: int, body: Any, headers: Mapping[str, str]) -> Answer:
    kind = {"Content-Type": "application/json;odata=minimalmetadata"}
    return Answer(status, json.dumps(body).encode(), {**kind, **headers})
