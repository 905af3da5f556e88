"""The local issuer by HTTP: Entra's flows and rules, and what `make run AUTH=1` starts."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from local.environment import SettingsError
from local.parts import plan
from local.people import CLIENT_ID, TENANT_ID
from local.run import example_commands
from shared.environment import Environment
from shared.settings import PeopleSettings
from tests.support.issuer import (
    ADA,
    BOB,
    CAROL,
    ORIGIN,
    PAGE,
    SCOPE,
    LocalIssuer,
    authorization,
    code_for,
    code_grant,
)

SERVICES = {"AZURE_OPENAI_ENDPOINT": "http://127.0.0.1:1/v1", "TABLES_CONNECTION_STRING": "x"}
DEVICE_GRANT = "urn:ietf:params:oauth:grant-type:device_code"


@pytest.fixture(scope="module")
def issuer() -> Iterator[LocalIssuer]:
    with LocalIssuer() as started:
        yield started


@pytest.fixture
def client(issuer: LocalIssuer) -> Iterator[httpx.Client]:
    with issuer.client() as opened:
        yield opened


def token(client: httpx.Client, form: dict[str, str], status: int = 200, *, by_page: bool = True) -> Any:
    headers = ORIGIN if by_page else {}
    response = client.post("token", data={"client_id": CLIENT_ID, **form}, headers=headers)
    assert response.status_code == status, response.text
    return response.json()


def test_token_is_signed_with_a_published_key_and_has_entras_claims(issuer: LocalIssuer) -> None:
    settings = PeopleSettings.read(Environment(issuer.environ))
    assert settings
    keys = jwt.PyJWKSet.from_dict(httpx.get(settings.keys_url, trust_env=False).json())
    access = issuer.access_token(CAROL)
    key = next(key for key in keys.keys if key.key_id == jwt.get_unverified_header(access)["kid"])
    claims = jwt.decode(access, key, algorithms=["RS256"], audience=CLIENT_ID, issuer=settings.issuer)
    assert claims["exp"] - claims["iat"] == 3_600
    assert {name: claims[name] for name in ("tid", "oid", "scp", "roles", "name", "preferred_username", "ver")} == {
        "tid": TENANT_ID,
        "oid": CAROL.object_id,
        "scp": "access_as_user",
        "roles": ["Chat.User", "Chat.Admin"],
        "name": "Carol Shaw",
        "preferred_username": "carol@example.com",
        "ver": "2.0",
    }


def test_discovery_document_leads_to_every_endpoint(issuer: LocalIssuer) -> None:
    url = f"{issuer.authority}/{TENANT_ID}/v2.0/.well-known/openid-configuration"
    document = httpx.get(url, trust_env=False).json()
    assert document["issuer"] == f"{issuer.authority}/{TENANT_ID}/v2.0"
    for name in ("authorization_endpoint", "token_endpoint", "device_authorization_endpoint", "end_session_endpoint"):
        assert httpx.get(document[name], trust_env=False, follow_redirects=False).status_code != 404, name
    assert len(httpx.get(document["jwks_uri"], trust_env=False).json()["keys"]) == 1


def test_page_of_the_origin_reads_the_answer(issuer: LocalIssuer, client: httpx.Client) -> None:
    response = client.post("token", data=code_grant(code_for(client, ADA)), headers=ORIGIN)
    assert response.headers["access-control-allow-origin"] in ("*", ORIGIN["origin"])
    foreign = client.post("token", data={}, headers={"origin": "https://example.com"})
    assert "access-control-allow-origin" not in foreign.headers


def test_code_works_once(client: httpx.Client) -> None:
    form = code_grant(code_for(client, ADA))
    assert token(client, form)["access_token"]
    assert token(client, form, 400)["error"] == "invalid_grant"


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_verifier": "another"}, "invalid_grant"),
        ({"redirect_uri": PAGE + "2"}, "invalid_grant"),
        ({"client_id": TENANT_ID}, "unauthorized_client"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
    ],
)
def test_wrong_code_request_is_refused(client: httpx.Client, changes: dict[str, str], error: str) -> None:
    assert token(client, code_grant(code_for(client, ADA), **changes), 400)["error"] == error


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"redirect_uri": "https://example.com/chat"}, "not one of this machine"),
        ({"redirect_uri": "http://127.0.0.1@example.com/chat"}, "not one of this machine"),
        ({"redirect_uri": "http://["}, "not one of this machine"),
        ({"redirect_uri": "javascript:alert(1)"}, "not one of this machine"),
        ({"client_id": "another"}, "no client"),
        ({"code_challenge": ""}, "PKCE"),
        ({"code_challenge_method": "plain"}, "PKCE"),
        ({"response_type": "token"}, "response_type"),
    ],
)
def test_wrong_authorization_request_goes_nowhere(client: httpx.Client, changes: dict[str, str], reason: str) -> None:
    request = authorization(**changes)
    for response in (
        client.get("authorize", params=request),
        client.post("authorize", data=request | {"person": ADA.object_id}),
    ):
        assert response.status_code == 400
        assert reason in response.text


def test_page_escapes_what_a_request_contains(client: httpx.Client) -> None:
    response = client.get("authorize", params=authorization(state='"><script>x</script>'))
    assert response.status_code == 200
    assert "<script>" not in response.text


def test_pages_tokens_are_renewed_from_a_page_only(client: httpx.Client) -> None:
    """AADSTS9002327; and AADSTS90009 for a scope with the API's URI."""
    first = token(client, code_grant(code_for(client, ADA)))
    form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"], "scope": SCOPE}
    second = token(client, form)
    assert jwt.decode(second["access_token"], options={"verify_signature": False})["oid"] == ADA.object_id
    assert "AADSTS9002327" in token(client, form, 400, by_page=False)["error_description"]
    by_uri = form | {"scope": f"openid offline_access api://{CLIENT_ID}/access_as_user"}
    assert "AADSTS90009" in token(client, by_uri, 400)["error_description"]
    assert token(client, form | {"refresh_token": "x"}, 400)["error"] == "invalid_grant"


def test_device_signs_in_with_a_code(issuer: LocalIssuer, client: httpx.Client) -> None:
    device = client.post("devicecode", data={"client_id": CLIENT_ID, "scope": SCOPE}).json()
    form = {"grant_type": DEVICE_GRANT, "device_code": device["device_code"]}
    assert token(client, form, 400, by_page=False)["error"] == "authorization_pending"
    assert client.post("deviceauth", data={"user_code": "x", "person": ADA.object_id}).status_code == 400
    issuer.sign_in_device(device["user_code"].lower(), BOB)
    answer = token(client, form, by_page=False)
    assert jwt.decode(answer["access_token"], options={"verify_signature": False})["oid"] == BOB.object_id
    assert token(client, form, 400, by_page=False)["error"] == "expired_token"
    renewal = {"grant_type": "refresh_token", "refresh_token": answer["refresh_token"], "scope": SCOPE}
    assert token(client, renewal, by_page=False)["access_token"]


def test_declined_device_gets_no_token(issuer: LocalIssuer, client: httpx.Client) -> None:
    device = client.post("devicecode", data={"client_id": CLIENT_ID, "scope": SCOPE}).json()
    issuer.sign_in_device(device["user_code"], None)
    form = {"grant_type": DEVICE_GRANT, "device_code": device["device_code"]}
    assert token(client, form, 400, by_page=False)["error"] == "authorization_declined"


def test_foreign_host_name_is_refused(client: httpx.Client) -> None:
    assert client.get("deviceauth", headers={"host": "example.com"}).status_code == 400


class TestRun:
    """`make run AUTH=1`"""

    def test_people_sign_in_at_the_issuer(self, tmp_path: Path) -> None:
        todo = plan({}, SERVICES | {"AUTH": "1"}, tmp_path, 7071)
        assert [part.name for part in todo.parts] == ["issuer", "host"]
        people = PeopleSettings.read(Environment(todo.parts[-1].environment))
        assert people
        assert (people.tenant_id, people.client_id) == (TENANT_ID, CLIENT_ID)
        assert any("Ada Lovelace" in note and "login" in note for note in todo.notes)
        curl = shlex.split(example_commands("http://127.0.0.1:7071", todo)[0])
        assert f"api-key: {todo.client_key}" in curl
        assert json.loads(curl[-1]) == {"message": "Hello!"}

    def test_configured_tenant_needs_no_issuer(self, tmp_path: Path) -> None:
        settings = {"AUTH_TENANT_ID": TENANT_ID, "AUTH_CLIENT_ID": CLIENT_ID}
        todo = plan(settings, SERVICES | {"AUTH": "1"}, tmp_path, 7071)
        assert [part.name for part in todo.parts] == ["host"]
        assert todo.people_sign_in

    def test_people_do_not_sign_in_without_it(self, tmp_path: Path) -> None:
        todo = plan({}, SERVICES, tmp_path, 7071)
        assert [part.name for part in todo.parts] == ["host"]
        assert not todo.people_sign_in

    def test_other_value_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match="AUTH must be 1"):
            plan({}, SERVICES | {"AUTH": "entra"}, tmp_path, 7071)
