"""People's access tokens against an issuer on loopback: the person, or an error that says what is wrong."""

import asyncio
import base64
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from local.keys import line
from shared.access.authentication import Auth, Authenticator
from shared.access.entra import KEYS_AGE_S, KEYS_INTERVAL_S, KEYS_RETRY_S, KEYS_TIMEOUT_S, MAX_TOKEN_BYTES, Entra
from shared.access.keys import Keys
from shared.domain.principal import Principal
from shared.environment import Environment
from shared.errors import SignInUnavailable, Unauthorized
from shared.settings import PeopleSettings
from tests.support.clock import ManualClock
from tests.support.entra import (
    ADA,
    BOB,
    CAROL,
    CLIENT,
    SCOPE,
    TENANT,
    EntraIssuer,
    SigningKey,
    base64url,
    jwt,
    private_key,
)

Mint = Callable[[EntraIssuer], str]
OTHER_ID = "99999999-0000-4000-8000-000000000000"
HOUR_S = 3_600
EDGE_S = 5  # of the test's own duration, before or after the leeway of 60 s


@pytest.fixture
def issuer() -> Iterator[EntraIssuer]:
    with EntraIssuer() as server:
        yield server


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def settings(issuer: EntraIssuer, **environ: str) -> PeopleSettings:
    people = PeopleSettings.read(Environment(issuer.environ | environ))
    assert people
    return people


def entra_of(issuer: EntraIssuer, clock: ManualClock, **environ: str) -> Entra:
    return Entra(settings(issuer, **environ), clock)


@pytest.fixture
def entra(issuer: EntraIssuer, clock: ManualClock) -> Entra:
    return entra_of(issuer, clock)


async def refusal(entra: Entra, token: str) -> str:
    """The message, which has nothing of the token."""
    with pytest.raises(Unauthorized) as error:
        await entra.principal(token)
    message = error.value.message
    assert not [
        text for text in (*token.split("."), "Ada", "ada@", ADA.object_id, OTHER_ID) if text and text in message
    ]
    return message


@dataclass(frozen=True)
class In:
    """The time in so many seconds from when the token is minted."""

    seconds: float


def minted(issuer: EntraIssuer, claims: dict[str, Any]) -> str:
    times = {name: time.time() + value.seconds for name, value in claims.items() if isinstance(value, In)}
    return issuer.token(ADA, **claims | times)


class TestGood:
    @pytest.mark.parametrize(
        ("claims", "is_admin"),
        [
            ({}, False),
            ({"scp": "openid access_as_user profile"}, False),
            ({"scp": None, "roles": ["Chat.User"]}, False),
            ({"scp": None, "roles": ["Chat.Admin"]}, True),
            ({"roles": ["Other", "Chat.User", "Chat.Admin"]}, True),
            ({"roles": ["chat.admin", "Chat.Admin "]}, False),
            ({"roles": [{"Chat.Admin": 1}, None, "Chat.User"]}, False),
            ({"aud": f"api://{CLIENT}"}, False),
            ({"aud": ["https://other.example", CLIENT]}, False),
            ({"exp": In(HOUR_S)}, False),
            ({"nbf": None, "iat": None}, False),
            ({"exp": In(EDGE_S - 60)}, False),
            ({"nbf": In(60 - EDGE_S), "iat": In(60 - EDGE_S)}, False),
        ],
        ids=repr,
    )
    async def test_token_is_the_persons(
        self, entra: Entra, issuer: EntraIssuer, claims: dict[str, Any], is_admin: bool
    ) -> None:
        assert await entra.principal(minted(issuer, claims)) == Principal(ADA.name, is_admin)

    async def test_keys_are_read_once(self, entra: Entra, issuer: EntraIssuer) -> None:
        for person in (ADA, BOB, CAROL, ADA):
            assert (await entra.principal(issuer.token(person))).name == person.name
        assert issuer.reads == 1

    async def test_token_of_maximum_size_is_taken(self, entra: Entra, issuer: EntraIssuer) -> None:
        groups = [OTHER_ID] * 200
        token = issuer.token(groups=groups)
        assert 8_000 < len(token) < MAX_TOKEN_BYTES
        assert (await entra.principal(token)).name == ADA.name

    async def test_one_of_the_required_roles_suffices(self, issuer: EntraIssuer, clock: ManualClock) -> None:
        entra = entra_of(issuer, clock, AUTH_ROLES="Chat.User, Chat.Admin")
        for person in (BOB, CAROL):
            assert (await entra.principal(issuer.token(person))).name == person.name
        assert "none of the roles Chat.Admin, Chat.User" in await refusal(entra, issuer.token(ADA))


BAD_CLAIMS: list[tuple[dict[str, Any], str]] = [
    ({"exp": In(-60 - EDGE_S)}, "has expired"),
    ({"exp": 0}, "has expired"),
    ({"exp": -1e300}, "has expired"),
    ({"nbf": In(60 + 60)}, "is not valid yet"),
    ({"iat": In(60 + 60)}, "is not valid yet"),
    ({"aud": OTHER_ID}, f"is for another API. Request the scope {SCOPE}"),
    ({"aud": "00000003-0000-0000-c000-000000000000"}, "is for another API"),  # Microsoft Graph
    ({"aud": f"{CLIENT}/"}, "is for another API"),
    ({"aud": []}, "has no aud"),
    ({"aud": {CLIENT: 1}}, "is for another API"),
    ({"aud": [[CLIENT]]}, "is for another API"),
    ({"iss": f"https://login.microsoftonline.com/{TENANT}/v2.0"}, "issued by another tenant or authority"),
    ({"iss": f"https://sts.windows.net/{TENANT}/"}, "issued by another tenant or authority"),
    ({"iss": ["x"]}, "issued by another tenant or authority"),
    ({"iss": 1}, "issued by another tenant or authority"),
    ({"tid": OTHER_ID}, "issued by another tenant or authority"),
    ({"tid": f"{TENANT} "}, "issued by another tenant or authority"),
    ({"scp": None}, "neither the scope access_as_user nor, as an application's own, the role Chat.User. An ID token"),
    ({"scp": "User.Read"}, "neither the scope"),
    ({"scp": "access_as_users"}, "neither the scope"),
    ({"scp": None, "roles": ["Other"]}, "neither the scope"),
    ({"scp": None, "azp": None, "nonce": "n"}, "An ID token is no access token"),
    ({"scp": None, "azp": None, "nonce": "n", "roles": ["Chat.Admin"]}, "An ID token is no access token"),
    ({"ver": "1.0", "appid": CLIENT, "azp": None}, "has version 1. Set api.requestedAccessTokenVersion to 2"),
    *(({name: None}, f"has no {name}") for name in ("exp", "iss", "aud", "tid", "oid")),
    ({"oid": 7}, "has a malformed oid"),
    ({"oid": ""}, "has a malformed oid"),
    ({"oid": "ada"}, "has a malformed oid"),
    ({"oid": f"{OTHER_ID}\n"}, "has a malformed oid"),
    ({"oid": f"{OTHER_ID}:x"}, "has a malformed oid"),
    ({"oid": "\ud800"}, "has a malformed oid"),
    ({"oid": [ADA.object_id]}, "has a malformed oid"),
    ({"tid": [TENANT]}, "has a malformed tid"),
    ({"exp": "4102444800"}, "has a malformed exp"),
    ({"exp": "never"}, "has a malformed exp"),
    ({"exp": {}}, "has a malformed exp"),
    ({"exp": float("inf")}, "is malformed"),
    ({"exp": float("nan")}, "is malformed"),
    ({"nbf": "now"}, "has a malformed nbf"),
    ({"nbf": float("inf")}, "is malformed"),
    ({"nbf": 10**400}, "is not valid yet"),
    ({"iat": "now"}, "is malformed"),
    ({"sub": 1}, "is malformed"),
    ({"scp": ["access_as_user"]}, "has a malformed scp"),
    ({"roles": "Chat.User"}, "has a malformed roles"),
    ({"roles": {"Chat.User": 1}}, "has a malformed roles"),
]


@pytest.mark.parametrize(("claims", "message"), BAD_CLAIMS, ids=repr)
async def test_signed_token_with_bad_claims_is_refused(
    entra: Entra, issuer: EntraIssuer, claims: dict[str, Any], message: str
) -> None:
    assert message in await refusal(entra, minted(issuer, claims))


def with_header(**changes: Any) -> Mint:
    return lambda issuer: jwt(changes, issuer.claims(ADA), issuer.key)


def signed_by_another(issuer: EntraIssuer) -> str:
    return jwt({}, issuer.claims(ADA), SigningKey(private_key(2), issuer.key.key_id))


def with_segments(header: bytes | None = None, payload: bytes | None = None) -> Mint:
    def mint(issuer: EntraIssuer) -> str:
        usual = json.dumps({"alg": "RS256", "kid": issuer.key.key_id}).encode()
        return jwt(usual if header is None else header, issuer.claims(ADA) if payload is None else payload, issuer.key)

    return mint


def changed(change: Callable[[str], str]) -> Mint:
    return lambda issuer: change(issuer.token(ADA))


def with_claims_of_bob(token: str) -> str:
    header, payload, signature = token.split(".")
    claims = json.loads(_decoded(payload)) | {"oid": BOB.object_id}
    return f"{header}.{base64url(json.dumps(claims).encode())}.{signature}"


def _decoded(segment: str) -> bytes:
    return base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))


BAD_TOKENS: dict[str, tuple[Mint, str]] = {
    "alg none": (with_header(alg="none"), "is not signed with RS256"),
    "alg none without a signature": (
        lambda issuer: jwt({"alg": "none"}, issuer.claims(ADA), issuer.key).rpartition(".")[0] + ".",
        "is not signed with RS256",
    ),
    "no alg": (with_header(alg=None), "is not signed with RS256"),
    "alg is a list": (with_header(alg=["RS256"]), "is not signed with RS256"),
    "HS256 with the public key": (with_header(alg="HS256"), "is not signed with RS256"),
    "PS256": (with_header(alg="PS256"), "is not signed with RS256"),
    "rs256": (with_header(alg="rs256"), "is not signed with RS256"),
    "another key's signature": (signed_by_another, "has no valid signature"),
    "no signature": (changed(lambda token: token.rpartition(".")[0] + "."), "has no valid signature"),
    "short signature": (changed(lambda token: token.rpartition(".")[0] + ".AAAA"), "has no valid signature"),
    "another person's claims": (changed(with_claims_of_bob), "has no valid signature"),
    "unknown key id": (with_header(kid="unknown"), "signed with a key that its issuer does not publish"),
    "empty key id": (with_header(kid=""), "signed with a key that its issuer does not publish"),
    "no key id": (with_header(kid=None), "names no key"),
    "key id is a number": (with_header(kid=1), "is malformed"),
    "key in the header": (
        lambda issuer: jwt(
            {"jwk": SigningKey(private_key(2)).published(), "jku": "http://127.0.0.1:1/"},
            issuer.claims(ADA),
            SigningKey(private_key(2), issuer.key.key_id),
        ),
        "has no valid signature",
    ),
    "unknown crit": (with_header(crit=["x"], x=1), "is malformed"),
    "detached": (with_header(b64=False, crit=["b64"]), "is malformed"),
    "oversized": (lambda issuer: issuer.token(ADA, groups=["x" * MAX_TOKEN_BYTES]), "is longer than 16384 bytes"),
    "no parts": (lambda _: "", "is malformed"),
    "dots": (lambda _: "..", "is malformed"),
    "two parts": (lambda _: "eyJ.eyJ", "is malformed"),
    "four parts": (changed(lambda token: f"{token}.x"), "is malformed"),
    "malformed base64 in the header": (changed(lambda token: f"eyJ!{token}"), "is malformed"),
    "malformed base64 in the claims": (changed(lambda token: token.replace(".", ".*", 1)), "is malformed"),
    "not ASCII": (changed(lambda token: f"{token}é"), "is malformed"),
    "header is no JSON": (with_segments(header=b'{"alg": "RS256"'), "is malformed"),
    "header is a list": (with_segments(header=b'["RS256"]'), "is malformed"),
    "header is nested deeply": (with_segments(header=b"[" * 6_000), "is malformed"),
    "header is not UTF-8": (with_segments(header=b'{"alg": "\xff"}'), "is malformed"),
    "claims are no JSON": (with_segments(payload=b"hello"), "is malformed"),
    "claims are empty": (with_segments(payload=b""), "is malformed"),
    "claims are a list": (with_segments(payload=b"[]"), "is malformed"),
    "claims are null": (with_segments(payload=b"null"), "is malformed"),
    "claims are nested deeply": (with_segments(payload=b'{"a":' * 2_000), "is malformed"),
    "claims have a long number": (with_segments(payload=b'{"exp": ' + b"9" * 5_000 + b"}"), "is malformed"),
    "claims are not UTF-8": (with_segments(payload=b'{"a": "\xff"}'), "is malformed"),
}


@pytest.mark.parametrize("name", BAD_TOKENS)
async def test_bad_token_is_refused(entra: Entra, issuer: EntraIssuer, name: str) -> None:
    mint, message = BAD_TOKENS[name]
    assert message in await refusal(entra, mint(issuer))


class TestKeys:
    async def test_key_of_a_rotation_is_accepted_after_one_more_read(
        self, entra: Entra, issuer: EntraIssuer, clock: ManualClock
    ) -> None:
        before = issuer.token(ADA)
        await entra.principal(before)
        issuer.rotate()
        await clock.advance(KEYS_INTERVAL_S)

        for _ in range(3):
            assert (await entra.principal(issuer.token(ADA))).name == ADA.name
        assert issuer.reads == 2
        assert "does not publish" in await refusal(entra, before)
        assert issuer.reads == 2

    async def test_tokens_with_random_key_ids_cause_one_read_a_minute(
        self, entra: Entra, issuer: EntraIssuer, clock: ManualClock
    ) -> None:
        await entra.principal(issuer.token(ADA))
        for minute in range(3):
            assert issuer.reads == 1 + minute
            await clock.advance(KEYS_INTERVAL_S)
            tokens = [jwt({"kid": secrets.token_urlsafe()}, issuer.claims(ADA), issuer.key) for _ in range(100)]
            results = await asyncio.gather(*map(entra.principal, tokens), return_exceptions=True)
            assert {type(result) for result in results} == {Unauthorized}
        assert issuer.reads == 4

    async def test_keys_are_read_again_after_a_day(self, entra: Entra, issuer: EntraIssuer, clock: ManualClock) -> None:
        revoked = issuer.token(ADA)
        await entra.principal(revoked)
        issuer.rotate()
        await clock.advance(KEYS_AGE_S)

        assert "does not publish" in await refusal(entra, revoked)
        assert issuer.reads == 2

    async def test_concurrent_first_requests_cause_one_read(self, entra: Entra, issuer: EntraIssuer) -> None:
        with issuer.hold() as gate:
            running = [asyncio.create_task(entra.principal(issuer.token(person))) for person in (ADA, BOB) * 20]
            await gate.until_reached()
            gate.release()
            names = [(await task).name for task in running]
        assert names == [ADA.name, BOB.name] * 20
        assert issuer.reads == 1

    @pytest.mark.parametrize("token", ["good", "unknown key", "expired"])
    async def test_without_keys_every_token_is_refused(self, entra: Entra, issuer: EntraIssuer, token: str) -> None:
        tokens = {
            "good": issuer.token(ADA),
            "unknown key": issuer.token(ADA, SigningKey(private_key(2))),
            "expired": issuer.token(ADA, exp=1),
        }
        issuer.stop()
        with pytest.raises(SignInUnavailable) as error:
            await entra.principal(tokens[token])
        assert error.value.retry_after == KEYS_RETRY_S

    async def test_keys_that_could_not_be_read_are_tried_again_after_the_retry_after(
        self, entra: Entra, issuer: EntraIssuer, clock: ManualClock
    ) -> None:
        issuer.answer = (503, {}, b"")
        for _ in range(5):
            with pytest.raises(SignInUnavailable):
                await entra.principal(issuer.token(ADA))
        assert issuer.reads == 1
        issuer.answer = None
        await clock.advance(KEYS_RETRY_S)

        assert (await entra.principal(issuer.token(ADA))).name == ADA.name

    async def test_callers_wait_for_a_slow_issuer_together(
        self, entra: Entra, issuer: EntraIssuer, clock: ManualClock
    ) -> None:
        with issuer.hold() as gate:
            running = [asyncio.create_task(entra.principal(issuer.token(ADA))) for _ in range(20)]
            await gate.until_reached()
            await clock.advance(KEYS_TIMEOUT_S)
            results = await asyncio.gather(*running, return_exceptions=True)
        assert {type(result) for result in results} == {SignInUnavailable}
        assert issuer.reads == 1

    @pytest.mark.parametrize("fault", ["down", "slow"])
    async def test_keys_that_were_read_go_on_while_the_issuer_is_down_or_slow(
        self, entra: Entra, issuer: EntraIssuer, clock: ManualClock, fault: str
    ) -> None:
        await entra.principal(issuer.token(ADA))
        await clock.advance(30 * KEYS_AGE_S)
        if fault == "down":
            issuer.stop()
            for _ in range(3):
                assert (await entra.principal(issuer.token(ADA))).name == ADA.name
            return
        with issuer.hold() as gate:
            running = asyncio.create_task(entra.principal(issuer.token(ADA)))
            await gate.until_reached()
            await clock.advance(KEYS_TIMEOUT_S)
            assert (await running).name == ADA.name
            assert (await entra.principal(issuer.token(ADA))).name == ADA.name  # without another attempt
        assert issuer.reads == 2

    async def test_token_with_a_new_key_is_unavailable_not_wrong_while_the_issuer_is_down(
        self, entra: Entra, issuer: EntraIssuer, clock: ManualClock
    ) -> None:
        await entra.principal(issuer.token(ADA))
        issuer.rotate()
        issuer.answer = (503, {}, b"")
        await clock.advance(KEYS_INTERVAL_S)
        for _ in range(3):
            with pytest.raises(SignInUnavailable):
                await entra.principal(issuer.token(ADA))
        assert issuer.reads == 2
        issuer.answer = None
        await clock.advance(KEYS_INTERVAL_S)

        assert (await entra.principal(issuer.token(ADA))).name == ADA.name
        assert "does not publish" in await refusal(entra, issuer.token(ADA, SigningKey(private_key(2))))

    async def test_request_that_is_cancelled_while_it_reads_leaves_the_read_to_the_next(
        self, entra: Entra, issuer: EntraIssuer
    ) -> None:
        with issuer.hold() as gate:
            first = asyncio.create_task(entra.principal(issuer.token(ADA)))
            await gate.until_reached()
            waiting = asyncio.create_task(entra.principal(issuer.token(BOB)))
            await asyncio.sleep(0)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            gate.release()
            assert (await waiting).name == BOB.name

    @pytest.mark.parametrize(
        ("status", "headers", "body"),
        [
            (200, {}, b""),
            (200, {}, b"<html>sign in to the network</html>"),
            (200, {}, b"null"),
            (200, {}, b"[]"),
            (200, {}, b"{}"),
            (200, {}, b'{"keys": []}'),
            (200, {}, b'{"keys": {"kid": "a"}}'),
            (200, {}, b'{"keys": [1, null, "x", [], {}]}'),
            (200, {}, b'{"keys": [{"kty": "RSA", "kid": "a", "n": 1, "e": []}]}'),
            (200, {}, b'{"keys": [{"kty": "RSA", "kid": "a", "n": "AQAB", "e": "AA"}]}'),
            (200, {}, b"[" * 200_000),
            (200, {}, b"\xff\xfe"),
            (200, {"content-encoding": "gzip"}, b"\x1f\x8b\x08\x00"),
            (204, {}, b""),
            (302, {"location": "/"}, b'{"keys": []}'),
            (404, {}, b"{}"),
            (500, {}, b""),
        ],
        ids=repr,
    )
    async def test_answer_that_is_no_key_set_opens_nothing_and_changes_nothing(
        self,
        entra: Entra,
        issuer: EntraIssuer,
        clock: ManualClock,
        status: int,
        headers: dict[str, str],
        body: bytes,
    ) -> None:
        issuer.answer = (status, headers, body)
        with pytest.raises(SignInUnavailable):
            await entra.principal(issuer.token(ADA))
        issuer.answer = None
        await clock.advance(KEYS_RETRY_S)
        await entra.principal(issuer.token(ADA))

        issuer.answer = (status, headers, body)
        await clock.advance(KEYS_AGE_S)
        assert (await entra.principal(issuer.token(ADA))).name == ADA.name
        assert issuer.reads == 3

    @pytest.mark.parametrize("status", [201, 301, 302, 307, 308, 403])
    async def test_keys_are_taken_from_the_issuers_own_answer_only(
        self, entra: Entra, issuer: EntraIssuer, status: int
    ) -> None:
        keys = json.dumps({"keys": issuer.published}).encode()
        with EntraIssuer() as elsewhere:
            elsewhere.published = issuer.published
            location = f"{elsewhere.authority}/{TENANT}/discovery/v2.0/keys"
            issuer.answer = (status, {"location": location}, keys)
            with pytest.raises(SignInUnavailable):
                await entra.principal(issuer.token(ADA))
            assert elsewhere.reads == 0

    async def test_key_set_of_10_000_keys_is_not_read_to_its_end(self, entra: Entra, issuer: EntraIssuer) -> None:
        issuer.published = [issuer.key.published(), *[SigningKey(private_key(2)).published() for _ in range(9_999)]]
        with pytest.raises(SignInUnavailable):
            await entra.principal(issuer.token(ADA))

    async def test_one_unusable_key_does_not_spoil_the_others(self, entra: Entra, issuer: EntraIssuer) -> None:
        good = issuer.key.published()
        issuer.published = [
            *({**good, "kid": kid} for kid in (1, None, ["x"])),
            {**good, "kid": "a", "n": "!"},
            {**good, "kid": "b", "n": None},
            {"kty": "EC", "kid": "c", "crv": "P-256", "x": "AA", "y": "AA"},
            good,
        ]
        assert (await entra.principal(issuer.token(ADA))).name == ADA.name

    @pytest.mark.parametrize(
        "fields",
        [
            {"use": "enc"},
            {"alg": "RS512"},
            {"alg": "PS256"},
            {"alg": "HS256"},
            {"kty": "oct", "k": "c2VjcmV0"},
            {"kty": "EC", "crv": "P-256"},
        ],
        ids=repr,
    )
    async def test_key_for_another_use_or_algorithm_signs_no_token(
        self, entra: Entra, issuer: EntraIssuer, fields: dict[str, str]
    ) -> None:
        other = SigningKey(private_key(2))
        issuer.published = [issuer.key.published(), other.published(**fields)]
        assert "does not publish" in await refusal(entra, issuer.token(ADA, other))

    async def test_short_key_signs_no_token(self, entra: Entra, issuer: EntraIssuer) -> None:
        short = SigningKey(private_key(3, 1_024))
        issuer.published = [issuer.key.published(), short.published()]
        assert "does not publish" in await refusal(entra, issuer.token(ADA, short))

    async def test_key_without_a_use_or_with_its_algorithm_signs_tokens(
        self, entra: Entra, issuer: EntraIssuer
    ) -> None:
        key = issuer.key.published(alg="RS256")
        del key["use"]
        issuer.published = [key]
        assert (await entra.principal(issuer.token(ADA))).name == ADA.name

    async def test_log_says_that_keys_can_not_be_read(
        self, entra: Entra, issuer: EntraIssuer, caplog: pytest.LogCaptureFixture
    ) -> None:
        issuer.stop()
        with pytest.raises(SignInUnavailable):
            await entra.principal(issuer.token(ADA))
        assert "the keys of people's tokens can't be read: ClientConnectorError" in caplog.messages


KEY = "a-client-key-of-the-tests"
EYJ_KEY = "eyJhbGciOiJSUzI1NiJ9-is-no-token"


class TestHeaders:
    @pytest.fixture
    def authenticator(self, issuer: EntraIssuer, entra: Entra) -> Authenticator:
        client_keys = dict(line(name, key).split("=") for name, key in (("ann", KEY), ("eyj", EYJ_KEY)))
        return Authenticator(Keys("CLIENT_KEYS", client_keys), Keys("USAGE_KEYS", {}), settings(issuer), entra)

    async def test_token_is_taken_in_either_header(self, authenticator: Authenticator, issuer: EntraIssuer) -> None:
        token = issuer.token(ADA)
        for headers in (
            {"authorization": f"Bearer {token}"},
            {"api-key": token},
            {"authorization": f"bearer  {token} "},
        ):
            assert (await authenticator.principal(Auth.CLIENT_KEY, headers)).name == ADA.name
        both = {"authorization": f"Bearer {token}", "api-key": token}
        assert (await authenticator.principal(Auth.CLIENT_KEY, both)).name == ADA.name

    @pytest.mark.parametrize("other", [KEY, "wrong", "another person's token"])
    @pytest.mark.parametrize("first", [True, False])
    async def test_request_that_names_two_callers_is_refused(
        self, authenticator: Authenticator, issuer: EntraIssuer, other: str, first: bool
    ) -> None:
        token, second = issuer.token(ADA), issuer.token(BOB) if "token" in other else other
        bearer, api_key = (token, second) if first else (second, token)
        with pytest.raises(Unauthorized, match=r"several access tokens or keys\. Send one\."):
            await authenticator.principal(Auth.CLIENT_KEY, {"authorization": f"Bearer {bearer}", "api-key": api_key})

    @pytest.mark.parametrize("key", [KEY, EYJ_KEY])
    async def test_key_that_begins_like_a_token_is_a_key(self, authenticator: Authenticator, key: str) -> None:
        assert (await authenticator.principal(Auth.CLIENT_KEY, {"api-key": key})).name in ("key:ann", "key:eyj")

    @pytest.mark.parametrize("headers", [{}, {"api-key": "wrong"}, {"authorization": "Bearer eyJ.x"}])
    @pytest.mark.parametrize("auth", Auth)
    async def test_every_401_names_authority_and_scope(
        self, authenticator: Authenticator, issuer: EntraIssuer, auth: Auth, headers: dict[str, str]
    ) -> None:
        with pytest.raises(Unauthorized) as error:
            await authenticator.principal(auth, headers)
        authority = f'Bearer authorization_uri="{issuer.authority}/{TENANT}/oauth2/v2.0/authorize", scope="{SCOPE}"'
        assert error.value.challenge == authority + (', error="invalid_token"' if headers else "")
