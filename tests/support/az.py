"""An `az` and an `azd` for the hooks, with the state of both in one file: sign-in, registrations, azd's environment.

It answers as Azure CLI 2.91 does, and keeps Microsoft Graph's rules for registrations as they are documented:
https://learn.microsoft.com/graph/api/resources/application. A new object is unknown to the next requests, as on a
replica that has not heard of it.

Run as `python -m tests.support.az az|azd ARGUMENTS…`, with the state's path in AZ_STATE.
"""

import json
import os
import re
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

JSON = dict[str, Any]
GRAPH = "https://graph.microsoft.com"
NOT_SIGNED_IN = "Please run 'az login' to setup account."
REPLACED = ("displayName", "tags", "signInAudience", "isFallbackPublicClient", "identifierUris", "appRoles")
MERGED = ("api", "spa")  # a PATCH leaves what it does not name in them


class GraphError(Exception):
    """What `az rest` prints of an answer that is no success."""

    def __init__(self, reason: str, code: str, message: str) -> None:
        body = {"error": {"code": code, "message": message, "innerError": {"request-id": str(uuid.uuid4())}}}
        super().__init__(f"{reason}({json.dumps(body)})")


def new_state(**values: Any) -> JSON:
    """`lag`: how many requests of each kind (METHOD path) do not know a new application yet; `fails`: the kinds that
    are answered with 503; `throttled`: how many requests are refused; `denied`: whether the person may not change the
    directory; `tenant` of the person that is signed in, `tenants` of the subscriptions."""
    state: JSON = {"tenant": "", "tenants": {}, "applications": [], "servicePrincipals": [], "requests": [], "env": {}}
    return state | {"lag": {}, "throttled": 0, "denied": False, "fails": []} | values


class Graph:
    def __init__(self, state: JSON) -> None:
        self._state = state

    def answer(self, method: str, url: str, body: JSON | None) -> JSON | None:
        """Raises GraphError."""
        parts = urlsplit(url)
        collection, _, object_id = parts.path.removeprefix("/v1.0/").partition("/")
        self._state["requests"].append(f"{method.upper()} {collection}")
        if f"{method.upper()} {collection}" in self._state["fails"]:
            raise GraphError("Service Unavailable", "UnknownError", "")
        if self._state["throttled"]:
            self._state["throttled"] -= 1
            raise GraphError("Too Many Requests", "TooManyRequests", "Too many requests")
        if method == "get":
            return {"value": self._filtered(collection, parse_qs(parts.query).get("$filter", [""])[0])}
        if self._state["denied"]:
            message = "Insufficient privileges to complete the operation."
            raise GraphError("Forbidden", "Authorization_RequestDenied", message)
        assert body is not None
        if method == "patch":
            self._patch(self._application("id", object_id), body)
            return None
        made = self._new_application(body) if collection == "applications" else self._new_principal(body)
        self._state[collection].append(made)
        return made

    def _filtered(self, collection: str, condition: str) -> list[JSON]:
        if tagged := re.fullmatch(r"tags/any\(tag:tag eq '(.+)'\)", condition):
            return [each for each in self._state[collection] if tagged[1] in each["tags"]]
        named = re.fullmatch("appId eq '(.+)'", condition)
        assert named, condition
        return [each for each in self._state[collection] if each["appId"] == named[1]]

    def _application(self, key: str, value: str) -> JSON:
        matching: list[JSON] = [each for each in self._state["applications"] if each[key] == value]
        unknown = f"Resource '{value}' does not exist or one of its queried reference-property objects are not present."
        if not matching or self._is_lagging():
            raise GraphError("Not Found", "Request_ResourceNotFound", unknown)
        return matching[0]

    def _is_lagging(self) -> bool:
        kind = self._state["requests"][-1]
        left = self._state["lag"].get(kind, 0)
        self._state["lag"][kind] = max(0, left - 1)
        return bool(left)

    def _new_application(self, body: JSON) -> JSON:
        application: JSON = {"id": str(uuid.uuid4()), "appId": str(uuid.uuid4()), "identifierUris": [], "tags": []}
        application |= {"spa": {"redirectUris": []}, "api": {"oauth2PermissionScopes": []}, "appRoles": []}
        application["api"] |= {"requestedAccessTokenVersion": None, "preAuthorizedApplications": []}
        self._patch(application, body)
        return application

    def _new_principal(self, body: JSON) -> JSON:
        app_id = body["appId"]
        try:
            self._application("appId", app_id)
        except GraphError:
            message = f"The appId '{app_id}' of the service principal does not reference a valid application object."
            raise GraphError("Bad Request", "Request_BadRequest", message) from None
        assert not self._filtered("servicePrincipals", f"appId eq '{app_id}'")
        return {"id": str(uuid.uuid4()), "appId": app_id, "tags": []}

    @staticmethod
    def _patch(application: JSON, body: JSON) -> None:
        if set(body) - {*REPLACED, *MERGED}:
            raise GraphError("Bad Request", "Request_BadRequest", f"Invalid property in {sorted(body)}.")
        changed = {**application, **{name: body[name] for name in REPLACED if name in body}}
        changed |= {name: {**application[name], **body[name]} for name in MERGED if name in body}
        own_uris = {f"api://{application['appId']}"}
        if set(changed["identifierUris"]) - own_uris:
            raise GraphError(
                "Bad Request", "HostNameNotOnVerifiedDomain", "Values of identifierUris property must use …"
            )
        stored = {scope["id"] for scope in application["api"]["oauth2PermissionScopes"]}
        for client in changed["api"]["preAuthorizedApplications"]:
            if set(client["delegatedPermissionIds"]) - stored:
                message = "Property PreAuthorizedApplications references a permission that cannot be found."
                raise GraphError("Bad Request", "InvalidValue", message)
        ids = [each["id"] for each in (*changed["appRoles"], *changed["api"]["oauth2PermissionScopes"])]
        addresses = changed["spa"]["redirectUris"]
        if len(ids) != len(set(ids)) or len(addresses) != len(set(addresses)):
            raise GraphError("Bad Request", "Request_BadRequest", "Duplicate value.")
        application.update(changed)


def pairs(answer: JSON) -> list[Any]:
    return [[each["id"], each["appId"]] for each in answer["value"]]


QUERIES: Mapping[str, Callable[[JSON], list[Any]]] = {  # of the hooks; JMESPath itself is not installed
    "value[].[id, appId]": pairs,
    "value[].[id]": lambda answer: [[each["id"]] for each in answer["value"]],
    "[id, appId]": lambda answer: [answer["id"], answer["appId"]],
    "[id]": lambda answer: [answer["id"]],
}


def queried(query: str, answer: JSON) -> list[Any]:
    if owned := re.fullmatch(r"value\[\?appId=='(.+)'\]\.\[\[id\], spa\.redirectUris\]\[\]\[\]", query):
        matching = [each for each in answer["value"] if each["appId"] == owned[1]]
        return [part for each in matching for part in (each["id"], *each["spa"]["redirectUris"])]
    return QUERIES[query](answer)


def tsv(rows: list[Any]) -> str:
    return "".join("\t".join(row) + "\n" if isinstance(row, list) else f"{row}\n" for row in rows)


def az(state: JSON, command: str, options: Mapping[str, str]) -> str:
    """What it prints. Raises GraphError and LookupError."""
    assert options["--output"] in ("tsv", "none")
    if command == "cloud show":
        assert options["--query"] == "endpoints.microsoftGraphResourceId"
        return f"{GRAPH}/\n"
    if not state["tenant"]:
        raise LookupError(NOT_SIGNED_IN)
    if command == "account show":
        assert options["--query"] == "tenantId"
        subscription = options.get("--subscription")
        if subscription is None:
            return f"{state['tenant']}\n"
        if subscription not in state["tenants"]:
            raise LookupError(f"Subscription '{subscription}' not found. Check the spelling and casing and try again.")
        return f"{state['tenants'][subscription]}\n"
    assert command == "rest"
    assert options["--url"].startswith(f"{GRAPH}/v1.0/")
    body = json.loads(Path(options["--body"].removeprefix("@")).read_text()) if "--body" in options else None
    answer = Graph(state).answer(options["--method"], options["--url"], body)
    print("WARNING: A new version of Azure CLI is available.", file=sys.stderr)
    return tsv(queried(options["--query"], answer)) if answer is not None else ""


def main() -> int:
    program, *arguments = sys.argv[1:]
    path = Path(os.environ["AZ_STATE"])
    state = json.loads(path.read_text())
    words = [*arguments, "--"]
    first = next(index for index, word in enumerate(words) if word.startswith("--"))
    options = dict(zip(arguments[first::2], arguments[first + 1 :: 2], strict=True))
    try:
        if program == "azd":
            verb, noun, name, value = arguments[:first]
            assert (verb, noun, [*options]) == ("env", "set", ["--environment"])
            state["env"][name] = value
        else:
            print(az(state, " ".join(arguments[:first]), options), end="")
    except (GraphError, LookupError) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        return 1
    finally:
        path.write_text(json.dumps(state))
    return 0


if __name__ == "__main__":
    sys.exit(main())
