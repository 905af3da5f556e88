"""Every trigger of the app on one screen: route, method, who may call it, and the one call that answers."""

import azure.functions as func
from azurefunctions.extensions.http.fastapi import Request, Response

from shared import api, compatible, static, usage

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)


@app.route("api/chat", methods=["POST"])
async def chat(req: Request) -> Response:
    return await api.post_chat(req)


@app.route("api/sessions/{session_id}", methods=["GET"])
async def session(req: Request) -> Response:
    return await api.get_session(req)


@app.route("api/sessions/{session_id}", methods=["DELETE"])
async def erase_session(req: Request) -> Response:
    return await api.delete_session(req)


@app.route("api/sessions/{session_id}/messages", methods=["GET"])
async def messages(req: Request) -> Response:
    return await api.get_messages(req)


@app.route("api/sessions/{session_id}/messages", methods=["DELETE"])
async def clear_messages(req: Request) -> Response:
    return await api.delete_messages(req)


@app.route("openai/v1/chat/completions", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)
async def completion(req: Request) -> Response:
    return await compatible.post_completion(req)


@app.route("openai/deployments/{deployment}/chat/completions", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)
async def completion_of_deployment(req: Request) -> Response:
    return await compatible.post_completion(req)


@app.route("openai/v1/models", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def models(req: Request) -> Response:
    return await compatible.get_models(req)


@app.route("api/usage/daily/{date}", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def usage_of_day(req: Request) -> Response:
    return await usage.get_day(req)


@app.route("api/usage/daily", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def usage_of_days(req: Request) -> Response:
    return await usage.get_days(req)


@app.route("api/usage/daily/{date}/email", methods=["POST"], auth_level=func.AuthLevel.ANONYMOUS)
async def email_usage_of_day(req: Request) -> Response:
    return await usage.post_email(req)


@app.timer_trigger("timer", "%SUMMARY_SCHEDULE%")
async def daily_cost_summary(timer: func.TimerRequest) -> None:
    await usage.fire()


@app.route("api/about", methods=["GET"])
async def about(req: Request) -> Response:
    return await api.get_about(req)


@app.route("api/openapi.json", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def openapi(req: Request) -> Response:
    return await api.get_openapi(req)


@app.route("api/health", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def health(req: Request) -> Response:
    return await api.get_health(req)


@app.route("chat", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def chat_page(req: Request) -> Response:
    return static.page(req, "chat")


@app.route("docs", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def docs_page(req: Request) -> Response:
    return static.page(req, "docs")


@app.route("usage", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def usage_page(req: Request) -> Response:
    return static.page(req, "usage")


@app.route("pages/{file}", methods=["GET"], auth_level=func.AuthLevel.ANONYMOUS)
async def page_file(req: Request) -> Response:
    return static.file(req)
