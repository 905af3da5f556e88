"""All triggers of the app: name, method, route, authentication and handler."""
# ruff: noqa: E402 - collecting garbage while modules are imported takes a twentieth of a cold start, and finds nothing

import gc

gc.disable()

from collections.abc import Callable, Sequence
from functools import partial

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from shared.access.authentication import Auth
from shared.services import people_sign_in, services
from shared.web import chat, cors, limits, models, openai, pages, service, unknown, usage
from shared.web.http import ErrorWriter, Handler, error_response, respond
from shared.web.lazily import Lazily
from shared.web.responses.errors import error_response as response_error

FUNCTION, ANONYMOUS = func.AuthLevel.FUNCTION, func.AuthLevel.ANONYMOUS

PEOPLE_SIGN_IN = people_sign_in()  # the app then checks every caller itself
responses = Lazily("shared.web.responses.responses")
conversations = Lazily("shared.web.responses.conversations")
embeddings = Lazily("shared.web.embeddings")
sessions = Lazily("shared.web.sessions")
export = Lazily("shared.web.export")

app = func.FunctionApp()


def route(
    name: str, method: str, path: str, auth: Auth, handler: Handler, errors: ErrorWriter = error_response
) -> None:
    """An HTTP trigger for callers with a key. The platform checks function keys; the app checks all others."""

    async def function(req: Request) -> Response:
        return cors.with_cors(req, await respond(req, auth, handler, errors))

    function.__name__ = name
    level = ANONYMOUS if auth in (Auth.CLIENT_KEY, Auth.USAGE_KEY) or PEOPLE_SIGN_IN else FUNCTION
    app.route(path, methods=[method], auth_level=level)(function)


def openai_route(name: str, method: str, path: str, handler: Handler, errors: ErrorWriter = response_error) -> None:
    """Where OpenAI's clients look for a route, and where those of Azure OpenAI do."""
    route(name, method, f"openai/v1/{path}", Auth.CLIENT_KEY, handler, errors)
    route(f"azure_{name}", method, f"openai/{path}", Auth.CLIENT_KEY, handler, errors)


def public(name: str, path: str, handler: Callable[[Request], Response], methods: Sequence[str] = ("GET",)) -> None:
    """A route without authentication. It works while settings are missing or wrong."""

    async def function(req: Request) -> Response:
        return cors.with_cors(req, handler(req))

    function.__name__ = name
    app.route(path, methods=methods, auth_level=ANONYMOUS)(function)


route("chat", "POST", "api/chat", Auth.FUNCTION_KEY, chat.post_chat)
route("sessions", "GET", "api/sessions", Auth.FUNCTION_KEY, sessions.get_sessions)
route("session", "GET", "api/sessions/{session_id}", Auth.FUNCTION_KEY, sessions.get_session)
route("update_session", "PATCH", "api/sessions/{session_id}", Auth.FUNCTION_KEY, sessions.patch_session)
route("claim_session", "POST", "api/sessions/{session_id}/claim", Auth.FUNCTION_KEY, sessions.post_claim)
route("erase_session", "DELETE", "api/sessions/{session_id}", Auth.FUNCTION_KEY, sessions.delete_session)
route("messages", "GET", "api/sessions/{session_id}/messages", Auth.FUNCTION_KEY, sessions.get_messages)
route("clear_messages", "DELETE", "api/sessions/{session_id}/messages", Auth.FUNCTION_KEY, sessions.delete_messages)
route("export_session", "GET", "api/sessions/{session_id}/export", Auth.FUNCTION_KEY, export.get_export)
route("stop_turn", "POST", "api/sessions/{session_id}/stop", Auth.FUNCTION_KEY, sessions.post_stop)
route("erase_own_sessions", "DELETE", "api/me/sessions", Auth.FUNCTION_KEY, sessions.delete_own_sessions)
route("erasure_of_own_sessions", "GET", "api/me/sessions/erasure", Auth.FUNCTION_KEY, sessions.get_erasure)
route("about", "GET", "api/about", Auth.FUNCTION_KEY, service.get_about)

route("limits", "GET", "api/limits", Auth.FUNCTION_KEY_OR_USAGE_KEY, limits.get_limits)

forwarded = partial(route, method="POST", auth=Auth.CLIENT_KEY, errors=openai.error_response)
completion = partial(forwarded, handler=openai.post_completion)
completion("completion", path="openai/v1/chat/completions")
completion("completion_of_deployment", path="openai/deployments/{deployment}/chat/completions")
embedding = partial(forwarded, handler=embeddings.post_embeddings)
embedding("embedding", path="openai/v1/embeddings")
embedding("embedding_of_deployment", path="openai/deployments/{deployment}/embeddings")
openai_route("models", "GET", "models", models.get_models, openai.error_response)
openai_route("model", "GET", "models/{model}", models.get_model, openai.error_response)

openai_route("response", "POST", "responses", responses.post_response)
openai_route("stored_response", "GET", "responses/{response_id}", responses.get_response)
openai_route("delete_response", "DELETE", "responses/{response_id}", responses.delete_response)
openai_route("cancel_response", "POST", "responses/{response_id}/cancel", responses.post_cancel)
openai_route("input_items", "GET", "responses/{response_id}/input_items", responses.get_input_items)

openai_route("new_conversation", "POST", "conversations", conversations.post_conversation)
openai_route("conversation", "GET", "conversations/{conversation_id}", conversations.get_conversation)
openai_route("update_conversation", "POST", "conversations/{conversation_id}", conversations.post_update)
openai_route("erase_conversation", "DELETE", "conversations/{conversation_id}", conversations.delete_conversation)
openai_route("add_items", "POST", "conversations/{conversation_id}/items", conversations.post_items)
openai_route("items", "GET", "conversations/{conversation_id}/items", conversations.get_items)
openai_route("item", "GET", "conversations/{conversation_id}/items/{item_id}", conversations.get_item)
openai_route("delete_item", "DELETE", "conversations/{conversation_id}/items/{item_id}", conversations.delete_item)

route("usage_of_limits", "GET", "api/usage/limits", Auth.USAGE_KEY, limits.get_limits)
route("usage_of_day", "GET", "api/usage/daily/{date}", Auth.USAGE_KEY, usage.get_day)
route("usage_of_days", "GET", "api/usage/daily", Auth.USAGE_KEY, usage.get_days)
route("email_usage_of_day", "POST", "api/usage/daily/{date}/email", Auth.USAGE_KEY, usage.post_email)

public("health", "api/health", service.get_health)
public("sign_in", "api/sign-in", service.get_sign_in)
public("openapi", "api/openapi.json", service.get_openapi)
public("home", "/", pages.home, ["GET", "HEAD"])  # link checkers and load balancers send HEAD
public("chat_page", "chat", partial(pages.page, name="chat"))
public("docs_page", "docs", partial(pages.page, name="docs"))
public("usage_page", "usage", partial(pages.page, name="usage"))
public("page_file", "pages/{file}", pages.file)

for prefix in cors.PREFIXES:  # without authentication, because a preflight carries no key
    public(f"preflight_{prefix}", f"{prefix}/{{*path}}", cors.preflight, ["OPTIONS"])
for prefix in unknown.PREFIXES:  # the platform tries the functions in the order of their names
    public(f"zz_{prefix}", f"{prefix}/{{*path}}", unknown.answer, unknown.METHODS)


@app.timer_trigger("timer", "%SUMMARY_SCHEDULE%")
async def daily_cost_summary(timer: func.TimerRequest) -> None:
    await services().delivery.send_due()


@app.timer_trigger("timer", "0 5/15 * * * *")  # every 15 minutes, but not on the hour, when the email is usually due
async def maintenance(timer: func.TimerRequest) -> None:
    await services().maintenance.run()


gc.freeze()  # what was imported stays: later collections need not look at it
gc.enable()
