"""The local host serves what a function app declares, as the platform does: driven over TCP with an app of its own."""

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
from tests.support.loopback import PATIENCE

EVERY_SECOND = "* * * * * *"
NEVER_SOON = "0 0 6 1 1 *"


@asynccontextmanager
async def serving(
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
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE) as client:
            yield client
    finally:
        server.should_exit = True
        await task


def declaring(
    route: str = "echo/{name}", methods: list[str] | None = None, level: str = "anonymous"
) -> func.FunctionApp:
    """An app with one function, which answers with its method and path parameters."""
    app = func.FunctionApp()

    @app.function_name("echo")
    @app.route(route=route, methods=methods, auth_level=func.AuthLevel(level))
    async def echo(req: Request) -> Response:
        return JSONResponse({"method": req.method, "params": req.path_params})

    return app


class TestRoutes:
    async def test_a_path_parameter_reaches_the_function(self) -> None:
        async with serving(declaring("sessions/{session_id}/messages")) as client:
            answer = await client.get("/sessions/ab-1/messages")
        assert answer.json() == {"method": "GET", "params": {"session_id": "ab-1"}}

    async def test_the_route_prefix_of_host_json_comes_first(self) -> None:
        async with serving(declaring("echo"), prefix="api") as client:
            assert (await client.get("/api/echo")).status_code == 200
            assert (await client.get("/echo")).status_code == 404

    async def test_an_unknown_path_is_404_without_a_body(self) -> None:
        async with serving(declaring()) as client:
            answer = await client.get("/nowhere")
        assert (answer.status_code, answer.content) == (404, b"")

    async def test_a_method_that_no_route_takes_is_404_as_on_the_platform(self) -> None:
        async with serving(declaring(methods=["POST"])) as client:
            answers = [await client.request(method, "/echo/x") for method in ("GET", "HEAD", "OPTIONS")]
        assert [(answer.status_code, answer.content) for answer in answers] == [(404, b"")] * 3

    async def test_one_path_is_shared_by_functions_of_different_methods(self) -> None:
        app = declaring("thing", ["GET"])

        @app.route(route="thing", methods=["DELETE"], auth_level=func.AuthLevel.ANONYMOUS)
        async def remove(req: Request) -> Response:
            return Response(status_code=204)

        async with serving(app) as client:
            assert (await client.get("/thing")).status_code == 200
            assert (await client.delete("/thing")).status_code == 204

    async def test_a_function_without_methods_takes_all(self) -> None:
        async with serving(declaring("echo")) as client:
            assert (await client.patch("/echo")).json()["method"] == "PATCH"

    async def test_a_function_without_a_route_is_reached_by_its_name(self) -> None:
        app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

        @app.route()
        async def named(req: Request) -> Response:
            return Response("here")

        async with serving(app) as client:
            assert (await client.get("/named")).text == "here"

    async def test_an_optional_parameter_may_be_absent(self) -> None:
        async with serving(declaring("daily/{date?}")) as client:
            assert (await client.get("/daily")).json()["params"] == {}
            assert (await client.get("/daily/2026-01-02")).json()["params"] == {"date": "2026-01-02"}

    async def test_a_rest_parameter_takes_slashes(self) -> None:
        async with serving(declaring("pages/{*rest}")) as client:
            assert (await client.get("/pages/a/b.css")).json()["params"] == {"rest": "a/b.css"}

    async def test_case_and_a_last_slash_do_not_count(self) -> None:
        async with serving(declaring("api/Echo/{name}")) as client:
            answer = await client.get("/API/echo/Ada/")
        assert answer.json()["params"] == {"name": "Ada"}

    @pytest.mark.parametrize(
        ("sent", "received"),
        [("%C3%A9%20%27", "é '"), ("a%2Fb", "a%2Fb"), ("a%2fb%41", "a%2fbA"), ("..%2F..", "..%2F.."), ("%25", "%")],
    )
    async def test_escapes_are_decoded_but_a_slash_stays_escaped(self, sent: str, received: str) -> None:
        async with serving(declaring()) as client:
            answer = await client.get(f"/echo/{sent}")
        assert answer.json()["params"] == {"name": received}

    async def test_the_first_declared_of_two_that_fit_is_called(self) -> None:
        app = declaring("things/{name}")

        @app.route(route="things/special", auth_level=func.AuthLevel.ANONYMOUS)
        async def special(req: Request) -> Response:
            return Response("special")

        async with serving(app) as client:
            assert (await client.get("/things/special")).json()["params"] == {"name": "special"}

    async def test_an_unknown_kind_of_route_parameter_is_refused_at_the_start(self) -> None:
        with pytest.raises(DeclarationError, match=r"echo: .*\{id:int\}"):
            application(declaring("things/{id:int}"), {}, "")

    async def test_a_trigger_that_is_neither_http_nor_timer_is_refused_at_the_start(self) -> None:
        app = func.FunctionApp()

        @app.queue_trigger(arg_name="item", queue_name="q", connection="C")
        def work(item: func.QueueMessage) -> None: ...

        with pytest.raises(DeclarationError, match=r"work: .*queueTrigger"):
            application(app, {}, "")

    @pytest.mark.parametrize(
        ("text", "prefix"), [('{"version": "2.0"}', "api"), ('{"extensions":{"http":{"routePrefix":""}}}', "")]
    )
    def test_the_prefix_is_read_from_host_json(self, tmp_path: Path, text: str, prefix: str) -> None:
        (tmp_path / "host.json").write_text(text)
        assert route_prefix(tmp_path / "host.json") == prefix


class TestHandlers:
    async def test_an_exception_is_an_empty_500_and_a_traceback_in_the_log(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

        @app.route(route="fails")
        async def fails(req: Request) -> Response:
            raise RuntimeError("a bug")

        async with serving(app) as client:
            answer = await client.get("/fails")
        assert (answer.status_code, answer.content) == (500, b"")
        assert any(record.exc_info and "a bug" in str(record.exc_info[1]) for record in caplog.records)

    async def test_a_result_that_is_no_response_is_a_500(self) -> None:
        app = func.FunctionApp(http_auth_level=func.AuthLevel.ANONYMOUS)

        @app.route(route="nothing")
        async def nothing(req: Request) -> Response:
            return None  # type: ignore[return-value]

        async with serving(app) as client:
            assert (await client.get("/nothing")).status_code == 500

    async def test_a_plain_function_does_not_hold_up_the_others(self) -> None:
        app = declaring("quick")
        loop, release = asyncio.get_running_loop(), asyncio.Event()

        @app.route(route="blocking", auth_level=func.AuthLevel.ANONYMOUS)
        def blocking(req: Request) -> Response:
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result(10)
            return Response("done")

        async with serving(app) as client:
            held = asyncio.create_task(client.get("/blocking"))
            assert (await client.get("/quick")).status_code == 200
            assert not held.done()
            release.set()
            assert (await held).text == "done"

    async def test_no_server_header_is_sent(self) -> None:
        async with serving(declaring("echo")) as client:
            assert "server" not in (await client.get("/echo")).headers

    async def test_the_log_has_the_path_but_not_the_query(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("INFO", "local.host")
        async with serving(declaring()) as client:
            await client.get("/echo/x%0Ay?code=secret")
        lines = [record.getMessage() for record in caplog.records if "/echo/" in record.getMessage()]
        assert len(lines) == 1
        assert lines[0].startswith("GET /echo/x%0Ay 200 ")
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
    async def test_level_function_asks_for_the_key(self, headers: dict[str, str], query: str, status: int) -> None:
        async with serving(declaring("echo", level="function"), function_key="secret") as client:
            answer = await client.get(f"/echo{query}", headers=headers)
        assert answer.status_code == status

    async def test_level_anonymous_asks_for_none(self) -> None:
        async with serving(declaring("echo"), function_key="secret") as client:
            assert (await client.get("/echo")).status_code == 200

    async def test_level_admin_is_not_opened_by_a_function_key(self) -> None:
        async with serving(declaring("echo", level="admin"), function_key="secret") as client:
            assert (await client.get("/echo", headers={"x-functions-key": "secret"})).status_code == 401

    async def test_without_a_key_nothing_is_asked_as_with_func_start(self) -> None:
        async with serving(declaring("echo", level="function")) as client:
            assert (await client.get("/echo")).status_code == 200


class Ticking:
    """An app with one timer function, which waits for `release` and counts its runs."""

    def __init__(self, schedule: str, *, failing: int = 0) -> None:
        self.app = func.FunctionApp()
        self.requests: list[func.TimerRequest] = []
        self.runs = self.at_once = self.most_at_once = 0
        self.release = asyncio.Event()
        self.release.set()

        @self.app.timer_trigger(arg_name="timer", schedule=schedule)
        async def tick(timer: func.TimerRequest) -> None:
            self.requests.append(timer)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            await self.release.wait()
            self.at_once -= 1
            self.runs += 1
            if self.runs <= failing:
                raise RuntimeError("a bad run")

    async def ran(self, times: int) -> None:
        async with asyncio.timeout(10):
            while self.runs < times:  # noqa: ASYNC110 - so that a function that never ran fails here, with a count
                await asyncio.sleep(0.01)


async def fire(client: httpx.AsyncClient, name: str = "tick", **how: object) -> httpx.Response:
    return await client.post(f"/admin/functions/{name}", **{"json": {}, **how})  # type: ignore[arg-type]


class TestTimers:
    async def test_a_schedule_from_the_settings_is_kept(self) -> None:
        ticking = Ticking("%EVERY%")
        async with serving(ticking.app, {"EVERY": EVERY_SECOND}):
            await ticking.ran(2)
        assert isinstance(ticking.requests[0], func.TimerRequest)
        assert ticking.requests[0].past_due is False

    async def test_a_schedule_whose_setting_is_missing_is_refused_at_the_start(self) -> None:
        with pytest.raises(DeclarationError, match=r"tick: .*EVERY is not set"):
            application(Ticking("%EVERY%").app, {"EVERY": ""}, "")

    async def test_a_failing_run_is_logged_and_the_schedule_goes_on(self, caplog: pytest.LogCaptureFixture) -> None:
        ticking = Ticking(EVERY_SECOND, failing=1)
        async with serving(ticking.app):
            await ticking.ran(2)
        assert "tick failed" in caplog.text

    async def test_it_is_fired_by_hand_and_answered_before_it_ends(self) -> None:
        ticking = Ticking(NEVER_SOON)
        ticking.release.clear()
        async with serving(ticking.app) as client:
            answer = await fire(client, json={"input": "x"})
            assert (answer.status_code, answer.content, ticking.runs) == (202, b"", 0)
            ticking.release.set()
            await ticking.ran(1)

    async def test_it_never_overlaps_itself(self) -> None:
        ticking = Ticking(NEVER_SOON)
        ticking.release.clear()
        async with serving(ticking.app) as client:
            for _ in range(3):
                assert (await fire(client)).status_code == 202
            ticking.release.set()
            await ticking.ran(3)
        assert ticking.most_at_once == 1

    async def test_a_run_that_was_begun_is_finished_before_the_host_ends(self) -> None:
        ticking = Ticking(NEVER_SOON)
        ticking.release.clear()
        async with serving(ticking.app) as client:
            await fire(client)
            asyncio.get_running_loop().call_later(0.2, ticking.release.set)
        assert ticking.runs == 1

    async def test_an_unknown_or_http_function_is_not_fired(self) -> None:
        async with serving(declaring()) as client:
            assert [(await fire(client, name)).status_code for name in ("tick", "echo")] == [404, 404]

    @pytest.mark.parametrize(
        ("host", "status"),
        [("localhost:7071", 202), ("[::1]", 202), ("evil.example", 403), ("127.0.0.1.evil.example", 403)],
    )
    async def test_only_a_loopback_host_header_may_fire_it(self, host: str, status: int) -> None:
        ticking = Ticking(NEVER_SOON)
        async with serving(ticking.app) as client:
            assert (await fire(client, headers={"host": host})).status_code == status
        assert ticking.runs == (1 if status == 202 else 0)

    async def test_a_form_that_another_site_could_send_is_refused(self) -> None:
        async with serving(Ticking(NEVER_SOON).app) as client:
            assert (await client.post("/admin/functions/tick", data={"a": "b"})).status_code == 415

    @pytest.mark.parametrize("body", ["", "{", "[]", "\xff"])
    async def test_a_body_that_is_no_object_is_refused(self, body: str) -> None:
        headers = {"content-type": "application/json"}
        async with serving(Ticking(NEVER_SOON).app) as client:
            answer = await client.post("/admin/functions/tick", content=body.encode("latin-1"), headers=headers)
        assert answer.status_code == 400

    async def test_the_apps_own_timers_are_fired_by_hand(
        self, api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "local.host")
        assert declared.timers().keys() == {"daily_cost_summary", "maintenance"}
        for name in declared.timers():
            assert (await fire(api, name)).status_code == 202
        async with asyncio.timeout(PATIENCE):
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
    def test_the_next_time_is_in_utc_with_seconds_first(self, schedule: str, due: datetime) -> None:
        assert next_time(schedule, NOON, "tick") == due

    def test_the_apps_own_maintenance_is_due_every_15_minutes(self) -> None:
        due, schedule = NOON, declared.timers()["maintenance"]
        times = [due := next_time(schedule, due, "maintenance") for _ in range(5)]
        assert [(time.hour, time.minute) for time in times] == [(12, 5), (12, 20), (12, 35), (12, 50), (13, 5)]

    @pytest.mark.parametrize("schedule", ["0 6 * * *", "0 0 25 * * *", "@daily", "often", "00:05:00", "0 0 6 * * * *"])
    def test_what_is_not_six_fields_is_refused(self, schedule: str) -> None:
        with pytest.raises(DeclarationError, match="tick"):
            next_time(schedule, NOON, "tick")
