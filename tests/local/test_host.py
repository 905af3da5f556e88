"""The local host serves the triggers of a function app as the platform does; tested over TCP with small apps."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import azure.functions as func
import httpx
import pytest
import uvicorn
from azurefunctions.extensions.http.fastapi import JSONResponse, Request, Response

from local.host import application, route_prefix
from local.timers import next_time
from local.triggers import DeclarationError
from tests.support import declared
from tests.support.loopback import MAX_WAIT_S

EVERY_SECOND = "* * * * * *"
ONCE_A_YEAR = "0 0 6 1 1 *"


@asynccontextmanager
async def serve(
    app: func.FunctionApp, environ: dict[str, str] | None = None, prefix: str = "", function_key: str | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    host = application(app, environ or {}, prefix, function_key)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(host, log_config=None, access_log=False, server_header=False, lifespan="on"))
    task = asyncio.create_task(server.serve([listening]))
    while not server.started:
        await asyncio.sleep(0.01)
        assert not task.done()
    port = listening.getsockname()[1]
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=MAX_WAIT_S
        ) as client:
            yield client
    finally:
        server.should_exit = True
        await task


def echo_app(
    route: str = "echo/{name}", methods: list[str] | None = None, level: str = "anonymous"
) -> func.FunctionApp:
    """An app with one function, which returns its method and path parameters."""
    app = func.FunctionApp()

    @app.function_name("echo")
    @app.route(route=route, methods=methods, auth_level=func.AuthLevel(level))
    async def echo(req: Request) -> Response:
        return JSONResponse({"method": req.method, "params": req.path_params})

    return app


class TestRoutes:
    async def test_path_parameter_is_passed_to_the_function(self) -> None:
        async with serve(echo_app("sessions/{session_id}/messages")) as client:
            response = await client.get("/sessions/ab-1/messages")
        assert response.json() == {"method": "GET", "params": {"session_id": "ab-1"}}

    async def test_routes_begin_with_the_route_prefix(self) -> None:
        async with serve(echo_app("echo"), prefix="api") as client:
            assert (await client.get("/api/echo")).status_code == 200
            assert (await client.get("/echo")).status_code == 404

    async def test_unknown_path_returns_404_without_a_body(self) -> None:
        async with serve(echo_app()) as client:
            response = await client.get("/nowhere")
        assert (response.status_code, response.content) == (404, b"")

    async def test_wrong_method_returns_404_as_on_the_platform(self) -> None:
        async with serve(echo_app(methods=["POST"])) as client:
            responses = [await client.request(method, "/echo/x") for method in ("GET", "HEAD", "OPTIONS")]
        assert [(response.status_code, response.content) for response in responses] == [(404, b"")] * 3

    async def test_functions_with_different_methods_can_share_a_path(self) -> None:
        app = echo_app("thing", ["GET"])

        @app.route(route="thing", methods=["DELETE"], auth_level=func.AuthLevel.ANONYMOUS)
        async def remove(req: Request) -> Response:
            return Response(status_code=204)

        async with serve(app) as client:
            assert (await client.get("/thing")).status_code == 200
            assert (await client.delete("/thing")).status_code == 204

    async def test_function_without_methods_accepts_all_methods(self) -> None:
        async with serve(echo_app("echo")) as client:
            assert (await client.patch("/echo")).json()["method"] == "PATCH"

    async def test_function_without_a_route_is_served_under_its_name(self) -> None:
        app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

        @app.route()
        async def named(req: Request) -> Response:
            return Response("here")

        async with serve(app) as client:
            assert (await client.get("/named")).text == "here"

    async def test_optional_path_parameter_may_be_absent(self) -> None:
        async with serve(echo_app("daily/{date?}")) as client:
            assert (await client.get("/daily")).json()["params"] == {}
            assert (await client.get("/daily/2026-01-02")).json()["params"] == {"date": "2026-01-02"}

    async def test_catch_all_parameter_may_contain_slashes(self) -> None:
        async with serve(echo_app("pages/{*rest}")) as client:
            assert (await client.get("/pages/a/b.css")).json()["params"] == {"rest": "a/b.css"}

    async def test_routes_ignore_case_and_a_trailing_slash(self) -> None:
        async with serve(echo_app("api/Echo/{name}")) as client:
            response = await client.get("/API/echo/Ada/")
        assert response.json()["params"] == {"name": "Ada"}

    @pytest.mark.parametrize(
        ("sent", "received"),
        [("%C3%A9%20%27", "é '"), ("a%2Fb", "a%2Fb"), ("a%2fb%41", "a%2fbA"), ("..%2F..", "..%2F.."), ("%25", "%")],
    )
    async def test_percent_encoding_is_decoded_except_for_slashes(self, sent: str, received: str) -> None:
        async with serve(echo_app()) as client:
            response = await client.get(f"/echo/{sent}")
        assert response.json()["params"] == {"name": received}

    @pytest.mark.parametrize("name", ["alpha", "Alpha", "zeta", "Zeta"])
    async def test_first_by_name_of_two_matching_routes_wins_as_on_the_platform(self, name: str) -> None:
        """Whatever the order of declaration and the case. Source: azure-functions-host#9876."""
        app = echo_app("things/{name}")

        @app.function_name(name)
        @app.route(route="things/special", auth_level=func.AuthLevel.ANONYMOUS)
        async def special(req: Request) -> Response:
            return Response("special")

        async with serve(app) as client:
            response = await client.get("/things/special")
        assert (response.text == "special") is (name.lower() < "echo")

    async def test_unsupported_route_parameter_is_refused_at_startup(self) -> None:
        with pytest.raises(DeclarationError, match=r"echo: .*\{id:int\}"):
            application(echo_app("things/{id:int}"), {}, "")

    async def test_trigger_other_than_http_or_timer_is_refused_at_startup(self) -> None:
        app = func.FunctionApp()

        @app.queue_trigger(arg_name="item", queue_name="q", connection="C")
        def work(item: func.QueueMessage) -> None: ...

        with pytest.raises(DeclarationError, match=r"work: .*queueTrigger"):
            application(app, {}, "")

    @pytest.mark.parametrize(
        ("text", "prefix"), [('{"version": "2.0"}', "api"), ('{"extensions":{"http":{"routePrefix":""}}}', "")]
    )
    def test_route_prefix_is_read_from_host_json(self, tmp_path: Path, text: str, prefix: str) -> None:
        (tmp_path / "host.json").write_text(text)
        assert route_prefix(tmp_path / "host.json") == prefix


class TestHandlers:
    async def test_exception_returns_500_without_a_body_and_logs_the_traceback(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

        @app.route(route="fails")
        async def fails(req: Request) -> Response:
            raise RuntimeError("a bug")

        async with serve(app) as client:
            response = await client.get("/fails")
        assert (response.status_code, response.content) == (500, b"")
        assert any(record.exc_info and "a bug" in str(record.exc_info[1]) for record in caplog.records)

    async def test_result_that_is_not_a_response_returns_500(self) -> None:
        app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

        @app.route(route="nothing")
        async def nothing(req: Request) -> Response:
            return None  # type: ignore[return-value]

        async with serve(app) as client:
            assert (await client.get("/nothing")).status_code == 500

    async def test_synchronous_function_does_not_block_others(self) -> None:
        app = echo_app("quick")
        loop, release = asyncio.get_running_loop(), asyncio.Event()

        @app.route(route="blocking", auth_level=func.AuthLevel.ANONYMOUS)
        def blocking(req: Request) -> Response:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(10)
            return Response("done")

        async with serve(app) as client:
            blocked = asyncio.create_task(client.get("/blocking"))
            assert (await client.get("/quick")).status_code == 200
            assert not blocked.done()
            release.set()
            assert (await blocked).text == "done"

    async def test_no_server_header_is_sent(self) -> None:
        async with serve(echo_app("echo")) as client:
            assert "server" not in (await client.get("/echo")).headers

    @pytest.mark.parametrize(
        ("route", "path", "logged"),
        [
            ("echo/{name}", "/echo/x%0Ay?code=secret", "GET /echo/{name} 200 "),
            ("echo/{name}/end", "/echo/ada.lovelace/end", "GET /echo/{name}/end 200 "),
            ("echo/{*rest}", "/echo/sessions/ada.lovelace", "GET /echo/{rest} 200 "),
            ("echo/{name}", "/echo/echo", "GET /echo/{name} 200 "),
            ("echo/{name}", "/ech%0Ao/x", "GET /ech%0Ao/x 404 "),
        ],
    )
    async def test_request_log_has_neither_the_query_nor_values_in_the_path(
        self, caplog: pytest.LogCaptureFixture, route: str, path: str, logged: str
    ) -> None:
        caplog.set_level("INFO", "local.host")
        async with serve(echo_app(route)) as client:
            await client.get(path)
        lines = [record.getMessage() for record in caplog.records if "/ech" in record.getMessage()]
        assert len(lines) == 1
        assert lines[0].startswith(logged)
        assert "secret" not in caplog.text


class TestFunctionKeys:
    @pytest.mark.parametrize(
        ("headers", "query", "status"),
        [
            ({}, "", 401),
            ({"x-functions-key": "wrong"}, "", 401),
            ({"x-functions-key": ""}, "", 401),
            ({"x-functions-key": "secret"}, "", 200),
            ({}, "?code=secret", 200),
            ({}, "?code=wrong", 401),
            ({"x-functions-key": "wrong"}, "?code=secret", 401),
        ],
    )
    async def test_auth_level_function_requires_the_key(self, headers: dict[str, str], query: str, status: int) -> None:
        async with serve(echo_app("echo", level="function"), function_key="secret") as client:
            response = await client.get(f"/echo{query}", headers=headers)
        assert response.status_code == status

    async def test_auth_level_anonymous_requires_no_key(self) -> None:
        async with serve(echo_app("echo"), function_key="secret") as client:
            assert (await client.get("/echo")).status_code == 200

    async def test_auth_level_admin_rejects_a_function_key(self) -> None:
        async with serve(echo_app("echo", level="admin"), function_key="secret") as client:
            assert (await client.get("/echo", headers={"x-functions-key": "secret"})).status_code == 401

    async def test_no_key_is_required_if_none_is_configured_as_with_func_start(self) -> None:
        async with serve(echo_app("echo", level="function")) as client:
            assert (await client.get("/echo")).status_code == 200


class TimerApp:
    """An app with one timer function, which waits for `release` and counts its runs."""

    def __init__(self, schedule: str, *, failing: int = 0) -> None:
        self.app = func.FunctionApp()
        self.requests: list[func.TimerRequest] = []
        self.runs = self.concurrent_runs = self.max_concurrent_runs = 0
        self.release = asyncio.Event()
        self.release.set()

        @self.app.timer_trigger(arg_name="timer", schedule=schedule)
        async def tick(timer: func.TimerRequest) -> None:
            self.requests.append(timer)
            self.concurrent_runs += 1
            self.max_concurrent_runs = max(self.max_concurrent_runs, self.concurrent_runs)
            await self.release.wait()
            self.concurrent_runs -= 1
            self.runs += 1
            if self.runs <= failing:
                raise RuntimeError("a bad run")

    async def wait_for_runs(self, count: int) -> None:
        async with asyncio.timeout(10):
            while self.runs < count:  # noqa: ASYNC110 - on a timeout the traceback shows the count
                await asyncio.sleep(0.01)


async def fire(client: httpx.AsyncClient, name: str = "tick", **options: object) -> httpx.Response:
    return await client.post(f"/admin/functions/{name}", **{"json": {}, **options})  # type: ignore[arg-type]


class TestTimers:
    async def test_timer_runs_on_the_schedule_from_the_settings(self) -> None:
        timer_app = TimerApp("%EVERY%")
        async with serve(timer_app.app, {"EVERY": EVERY_SECOND}):
            await timer_app.wait_for_runs(2)
        assert isinstance(timer_app.requests[0], func.TimerRequest)
        assert timer_app.requests[0].past_due is False

    async def test_schedule_with_a_missing_setting_is_refused_at_startup(self) -> None:
        with pytest.raises(DeclarationError, match=r"tick: .*EVERY, which is not set"):
            application(TimerApp("%EVERY%").app, {"EVERY": ""}, "")

    async def test_failing_run_is_logged_and_the_schedule_continues(self, caplog: pytest.LogCaptureFixture) -> None:
        timer_app = TimerApp(EVERY_SECOND, failing=1)
        async with serve(timer_app.app):
            await timer_app.wait_for_runs(2)
        assert "tick failed" in caplog.text

    async def test_admin_request_fires_the_timer_and_returns_202_before_the_run_ends(self) -> None:
        timer_app = TimerApp(ONCE_A_YEAR)
        timer_app.release.clear()
        async with serve(timer_app.app) as client:
            response = await fire(client, json={"input": "x"})
            assert (response.status_code, response.content, timer_app.runs) == (202, b"", 0)
            timer_app.release.set()
            await timer_app.wait_for_runs(1)

    async def test_runs_of_a_timer_never_overlap(self) -> None:
        timer_app = TimerApp(ONCE_A_YEAR)
        timer_app.release.clear()
        async with serve(timer_app.app) as client:
            for _ in range(3):
                assert (await fire(client)).status_code == 202
            timer_app.release.set()
            await timer_app.wait_for_runs(3)
        assert timer_app.max_concurrent_runs == 1

    async def test_running_timer_is_finished_before_the_host_exits(self) -> None:
        timer_app = TimerApp(ONCE_A_YEAR)
        timer_app.release.clear()
        async with serve(timer_app.app) as client:
            await fire(client)
            asyncio.get_running_loop().call_later(0.2, timer_app.release.set)
        assert timer_app.runs == 1

    async def test_admin_request_for_unknown_or_http_function_returns_404(self) -> None:
        async with serve(echo_app()) as client:
            assert [(await fire(client, name)).status_code for name in ("tick", "echo")] == [404, 404]

    @pytest.mark.parametrize(
        ("host", "status"),
        [("localhost:7071", 202), ("[::1]", 202), ("evil.example", 403), ("127.0.0.1.evil.example", 403)],
    )
    async def test_admin_request_requires_a_loopback_host_header(self, host: str, status: int) -> None:
        timer_app = TimerApp(ONCE_A_YEAR)
        async with serve(timer_app.app) as client:
            assert (await fire(client, headers={"host": host})).status_code == status
        assert timer_app.runs == (1 if status == 202 else 0)

    async def test_admin_request_with_a_form_body_is_refused(self) -> None:
        async with serve(TimerApp(ONCE_A_YEAR).app) as client:
            assert (await client.post("/admin/functions/tick", data={"a": "b"})).status_code == 415

    @pytest.mark.parametrize("body", ["", "{", "[]", "\xff"])
    async def test_admin_request_body_must_be_a_json_object(self, body: str) -> None:
        headers = {"content-type": "application/json"}
        async with serve(TimerApp(ONCE_A_YEAR).app) as client:
            response = await client.post("/admin/functions/tick", content=body.encode("latin-1"), headers=headers)
        assert response.status_code == 400

    async def test_admin_requests_fire_the_timers_of_the_app(
        self, api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "local.host")
        assert declared.timers().keys() == {"daily_cost_summary", "maintenance"}
        for name in declared.timers():
            assert (await fire(api, name)).status_code == 202
        async with asyncio.timeout(MAX_WAIT_S):
            while not all(f"{name} ran" in caplog.messages for name in declared.timers()):  # noqa: ASYNC110 - a list
                await asyncio.sleep(0.01)


NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)  # a Monday


class TestSchedules:
    @pytest.mark.parametrize(
        ("schedule", "due"),
        [
            ("0 0 6 * * *", datetime(2026, 3, 3, 6, tzinfo=UTC)),
            ("30 0 12 * * *", datetime(2026, 3, 2, 12, 0, 30, tzinfo=UTC)),
            ("0 */5 * * * *", datetime(2026, 3, 2, 12, 5, tzinfo=UTC)),
            ("0 0 12 * * *", datetime(2026, 3, 3, 12, tzinfo=UTC)),
            ("0 0 6 13 * 5", datetime(2026, 3, 13, 6, tzinfo=UTC)),  # both the 13th and a Friday
            ("0 0 6 * * Sun", datetime(2026, 3, 8, 6, tzinfo=UTC)),
        ],
    )
    def test_next_time_is_in_utc_and_seconds_come_first(self, schedule: str, due: datetime) -> None:
        assert next_time(schedule, NOON, "tick") == due

    def test_maintenance_timer_is_due_every_15_minutes(self) -> None:
        due, schedule = NOON, declared.timers()["maintenance"]
        times = [due := next_time(schedule, due, "maintenance") for _ in range(5)]
        assert [(time.hour, time.minute) for time in times] == [(12, 5), (12, 20), (12, 35), (12, 50), (13, 5)]

    @pytest.mark.parametrize("schedule", ["0 6 * * *", "0 0 25 * * *", "@daily", "often", "00:05:00", "0 0 6 * * * *"])
    def test_schedule_without_six_fields_is_refused(self, schedule: str) -> None:
        with pytest.raises(DeclarationError, match="tick"):
            next_time(schedule, NOON, "tick")
