"""Settings: defaults, errors that name the setting, and an app that starts without any."""

import json
import re
import subprocess
import sys
from decimal import Decimal
from operator import attrgetter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.environment import settings_file
from local.places import ROOT
from shared.domain.calls import Rates
from shared.domain.limits import Limit, Limits
from shared.settings import Settings, SettingsError, UnresolvedReference
from tests.conftest import FUNCTION_KEY, Serve
from tests.support.azure_openai import AzureOpenAI
from tests.support.chat_client import answer
from tests.support.setting_names import MINIMAL, names_read

ENDPOINT = "https://name.openai.azure.com/openai/v1/"
NAMES = names_read()
GUID = "11111111-2222-3333-4444-555555555555"
PEOPLE = {"AUTH_TENANT_ID": GUID, "AUTH_CLIENT_ID": GUID, "AUTH_AUTHORITY": "", "AUTH_ROLES": "", "AUTH_ACCEPT": ""}
ODD_VALUES = [
    *("é", "1,5", '"1,5"', "1_5", "-1", "1e5", "1e99999999999999999999", "nan", "NaN", "null", "[]", "{}", "[" * 9_999),
    *("1" * 5_000, "'", '"', "\x00", "\ud800", "{1: 2}", "a=b", "a=b;c=d", "AccountName=a;AccountKey=b", "@", "%zz"),
    *("https://[::1", "https://a:b", "https://a:99999", "https://\u2100", "https://a..b", "//", "https://" + "a" * 70),
]
PYTHON_WORDS = re.compile(
    r"class|decimal\.|Error|Expecting|Extra data|could not be cast|netloc|codec|sys\.|recursion|\bNone\b|True"
)


def read(**environ: str) -> Settings:
    return Settings.from_env(MINIMAL | environ)


def error_of(**environ: str) -> SettingsError:
    with pytest.raises(SettingsError) as error:
        read(**environ)
    return error.value


class TestDefaults:
    @pytest.mark.parametrize(
        ("attribute", "default"),
        [
            ("model.endpoints", (ENDPOINT,)),
            ("model.api_key", None),
            ("model.scope", "https://cognitiveservices.azure.com/.default"),
            ("model.deployment", "gpt-5.4-mini"),
            ("model.deployments", {"gpt-5.4-mini": ""}),
            ("model.embedding_deployments", {}),
            ("model.embedding_endpoints", (ENDPOINT,)),
            ("model.embedding_api_key", None),
            ("model.timeout", 60.0),
            ("model.max_retries", 2),
            ("model.reasoning_effort", None),
            ("model.prices", {}),
            ("turns.timeout", 220.0),
            ("turns.context_tokens", 16_000),
            ("turns.max_tokens", 800),
            ("turns.max_output_tokens", {}),
            ("turns.max_message_bytes", 262_144),
            ("turns.max_request_bytes", 20_971_520),
            ("tables.endpoint", MINIMAL["TABLES_ENDPOINT"]),
            ("tables.connection_string", None),
            ("tables.prefix", "chat"),
            ("mail.schedule", None),
            ("mail.recipients", None),
            ("mail.sender", None),
            ("mail.acs_endpoint", None),
            ("mail.acs_connection_string", None),
            ("mail.smtp_url", None),
            ("mail.outbox", None),
            ("keys.client_keys", {}),
            ("keys.usage_keys", {}),
            ("people", None),
            ("web.cors_origins", frozenset()),
            ("azure.client_id", None),
            ("azure.in_azure", False),
            ("azure.insights", None),
            ("azure.region", None),
        ],
    )
    def test_setting_has_default(self, attribute: str, default: Any) -> None:
        assert attrgetter(attribute)(read()) == default

    def test_system_prompt_has_a_default(self) -> None:
        assert read().turns.system_prompt.startswith("You are a helpful assistant.")

    @pytest.mark.parametrize("name", sorted(NAMES - MINIMAL.keys()))
    @pytest.mark.parametrize("empty", ["", "  ", "\n"])
    def test_empty_setting_counts_as_absent(self, name: str, empty: str) -> None:
        assert read(**{name: empty}) == read()

    @pytest.mark.parametrize("name", ["AZURE_OPENAI_ENDPOINT", "TABLES_ENDPOINT"])
    @pytest.mark.parametrize("empty", [None, "", " "])
    def test_missing_or_empty_required_setting_is_named_in_the_error(self, name: str, empty: str | None) -> None:
        environ = {key: value for key, value in MINIMAL.items() if key != name}
        with pytest.raises(SettingsError, match=f"^{name} .*is not set") as error:
            Settings.from_env(environ if empty is None else environ | {name: empty})
        assert error.value.name == name

    def test_connection_string_replaces_tables_endpoint(self) -> None:
        connection = "AccountName=a;AccountKey=a2V5"
        assert read(TABLES_ENDPOINT="", TABLES_CONNECTION_STRING=connection).tables.connection_string == connection


def test_summary_schedule_is_read_unchanged_apart_from_outer_spaces() -> None:
    assert read(SUMMARY_SCHEDULE=" 0 0 6 * * * ").mail.schedule == "0 0 6 * * *"


def test_every_setting_in_the_sample_has_a_row_in_the_documentation() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/settings.md").read_text(), re.MULTILINE)
    assert settings_file(ROOT / "local.settings.sample.json", optional=False).keys() - set(rows) == set()


def test_max_answer_tokens_is_half_the_context_up_to_100000() -> None:
    assert read(CONTEXT_TOKENS="2001").turns.max_answer_tokens == 1_000
    assert read(CONTEXT_TOKENS="1000000").turns.max_answer_tokens == 100_000


def test_repr_contains_no_secrets() -> None:
    settings = read(
        AZURE_OPENAI_API_KEY="hunter2",
        AZURE_OPENAI_EMBEDDING_API_KEY="hunter2",
        TABLES_CONNECTION_STRING="AccountName=a;AccountKey=hunter2=",
        ACS_CONNECTION_STRING="endpoint=https://a;accesskey=hunter2",
        SMTP_URL="smtps://user:hunter2@host",
    )
    assert "hunter2" not in repr(settings)


class TestEndpoints:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("https://name.openai.azure.com", ENDPOINT),
            ("https://name.openai.azure.com/", ENDPOINT),
            (" https://name.openai.azure.com ", ENDPOINT),
            ("https://name.openai.azure.com/openai/v1", ENDPOINT),
            ("https://name.openai.azure.com/openai/v1/", ENDPOINT),
            ("http://127.0.0.1:8080/v1", "http://127.0.0.1:8080/v1/"),
            ("https://host/some/path/v1", "https://host/some/path/v1/"),
        ],
    )
    def test_bare_host_gets_default_path_and_v1_url_is_unchanged(self, value: str, expected: str) -> None:
        assert read(AZURE_OPENAI_ENDPOINT=value).model.endpoints == (expected,)

    def test_endpoints_keep_their_order(self) -> None:
        endpoints = read(AZURE_OPENAI_ENDPOINT="https://b, https://a/v1 ,").model.endpoints
        assert endpoints == ("https://b/openai/v1/", "https://a/v1/")

    @pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:8080"])
    def test_loopback_endpoint_without_tls_is_accepted_without_api_key(self, host: str) -> None:
        assert read(AZURE_OPENAI_ENDPOINT=f"http://{host}").model.endpoints == (f"http://{host}/openai/v1/",)

    def test_remote_endpoint_without_tls_requires_an_api_key(self) -> None:
        error = error_of(AZURE_OPENAI_ENDPOINT="https://a, http://b")
        assert error.name == "AZURE_OPENAI_ENDPOINT"
        assert "'http://b/openai/v1/'" in str(error)
        with_key = read(AZURE_OPENAI_ENDPOINT="https://a, http://b", AZURE_OPENAI_API_KEY="a-key")
        assert with_key.model.endpoints[1] == "http://b/openai/v1/"


class TestMalformedSettings:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("AZURE_OPENAI_ENDPOINT", "name.openai.azure.com", "not a URL such as https://"),
            ("AZURE_OPENAI_ENDPOINT", "ftp://name", "not a URL such as https://"),
            ("AZURE_OPENAI_ENDPOINT", "https://", "not a URL such as https://"),
            ("AZURE_OPENAI_ENDPOINT", "https://[::1", "not a URL such as https://"),
            ("AZURE_OPENAI_ENDPOINT", "https://host:99999", "not a URL such as https://"),
            ("AZURE_OPENAI_ENDPOINT", "https://host:port", "not a URL such as https://"),
            ("AZURE_OPENAI_ENDPOINT", "https://a b", "not a URL such as https://"),
            ("AZURE_OPENAI_ENDPOINT", "https://a..b", "not a URL such as https://"),
            ("AZURE_OPENAI_ENDPOINT", "https://\u24d0", "not a URL such as https://"),
            ("AZURE_OPENAI_ENDPOINT", "https://\u2100", "not a URL such as https://"),
            ("AZURE_OPENAI_ENDPOINT", " , ", "contains no URL"),
            ("AZURE_OPENAI_ENDPOINT", "https://a, b", "'b' is not a URL"),
            ("AZURE_OPENAI_ENDPOINT", "https://user:secret@a", "contains a name or password"),
            ("AZURE_OPENAI_ENDPOINT", "https://a/openai/deployments/b", "does not end in /v1"),
            ("AZURE_OPENAI_ENDPOINT", "https://a/dev1", "does not end in /v1"),
            ("AZURE_OPENAI_ENDPOINT", "https://a/openai/v1?api-version=preview", "has a query or a fragment"),
            ("AZURE_OPENAI_REASONING_EFFORT", "much", "'much' is not one of none, minimal"),
            ("AZURE_OPENAI_MAX_RETRIES", "11", "not a whole number from 0 to 10"),
            ("AZURE_OPENAI_DEPLOYMENTS", "a b=gpt-4.1", "is not deployment=model"),
            ("AZURE_OPENAI_DEPLOYMENTS", "=gpt-4.1", "is not deployment=model"),
            ("AZURE_OPENAI_EMBEDDING_DEPLOYMENTS", "a b", "is not deployment=model"),
            ("AZURE_OPENAI_EMBEDDING_ENDPOINT", "b", "'b' is not a URL"),
            ("AZURE_OPENAI_MAX_TOKENS", "0", "whole number from 1 to"),
            ("AZURE_OPENAI_MAX_TOKENS", "1.5", "whole number from 1 to"),
            ("AZURE_OPENAI_MAX_TOKENS", "\N{ARABIC-INDIC DIGIT ONE}", "whole number from 1 to"),
            ("AZURE_OPENAI_MAX_TOKENS", "8001", "may be at most 8000: half of CONTEXT_TOKENS, and at most 100000"),
            ("AZURE_OPENAI_TIMEOUT_SECONDS", "0", "positive number of seconds"),
            ("AZURE_OPENAI_TIMEOUT_SECONDS", "inf", "positive number of seconds"),
            ("TURN_TIMEOUT_SECONDS", "-1", "positive number of seconds"),
            ("TURN_TIMEOUT_SECONDS", "1m", "positive number of seconds"),
            ("CONTEXT_TOKENS", "255", "whole number from 256 to"),
            ("CONTEXT_TOKENS", "9" * 10, "whole number from 256 to"),
            ("MAX_MESSAGE_BYTES", "1023", "whole number from 1024 to 500000"),
            ("MAX_MESSAGE_BYTES", "500001", "whole number from 1024 to 500000"),
            ("TABLES_ENDPOINT", "name", "not a URL such as https://"),
            ("TABLES_ENDPOINT", "http://name.table.example", "not a URL such as https://"),
            ("TABLES_ENDPOINT", "https://name:port", "not a URL such as https://"),
            ("TABLES_ENDPOINT", "https://user:secret@name", "contains a name or password"),
            ("TABLES_CONNECTION_STRING", "mine", "a part of it is not name=value"),
            ("TABLES_CONNECTION_STRING", "AccountName=a", "needs AccountName and AccountKey"),
            ("TABLES_CONNECTION_STRING", "AccountName=a;AccountKey=b;c", "a part of it is not name=value"),
            ("TABLES_CONNECTION_STRING", "AccountName=a;accountname=b;AccountKey=Yg==", "listed twice"),
            ("TABLES_CONNECTION_STRING", "AccountName=a;AccountKey=b", "AccountKey is not base64"),
            ("TABLES_CONNECTION_STRING", "AccountName=a;AccountKey=é", "AccountKey is not base64"),
            ("TABLE_PREFIX", "1st", "must begin with a letter, followed by up to 54"),
            ("TABLE_PREFIX", "a-b", "must begin with a letter, followed by up to 54"),
            ("TABLE_PREFIX", "a" * 56, "must begin with a letter, followed by up to 54"),
            ("CLIENT_KEYS", "ada", "not name=SHA-256"),
            ("USAGE_KEYS", f"ada={'0' * 63}", "not name=SHA-256"),
            ("CORS_ORIGINS", "https://a.example, *", "must be the whole setting"),
            ("CORS_ORIGINS", "https://a.example, a.example", "'a.example' is not an origin such as https://"),
            ("CORS_ORIGINS", "https://*.example.com", "is not an origin"),
            ("CORS_ORIGINS", "https://a.example/", "without a path"),
            ("CORS_ORIGINS", "https://a.example:443", "without a default port"),
            ("CORS_ORIGINS", "http://a.example:80", "without a default port"),
            ("CORS_ORIGINS", "https://A.example", "in lower case"),
            ("CORS_ORIGINS", "https://user:secret@a.example", "is not an origin"),
            ("CORS_ORIGINS", "https://bücher.example", "is not an origin"),
            ("CORS_ORIGINS", "null", "is not an origin"),
            ("CORS_ORIGINS", "https://a.example https://b.example", "is not an origin"),
        ],
    )
    def test_error_names_the_setting_and_the_problem(self, name: str, value: str, expected: str) -> None:
        error = error_of(**{name: value})
        assert error.name == name
        with pytest.raises(SettingsError, match=f"^{name} .*{expected}"):
            raise error

    @pytest.mark.parametrize("name", sorted(NAMES))
    def test_unresolved_key_vault_reference_is_named_in_the_error(self, name: str) -> None:
        error = error_of(**{name: "@Microsoft.KeyVault(SecretUri=https://v.vault.azure.net/secrets/s)"})
        assert isinstance(error, UnresolvedReference)
        assert error.name == name
        assert "could not resolve" in str(error)

    @pytest.mark.parametrize("name", ["TABLES_CONNECTION_STRING", "CLIENT_KEYS", "USAGE_KEYS"])
    def test_error_does_not_repeat_a_secret(self, name: str) -> None:
        assert "hunter2" not in str(error_of(**{name: "AccountKey=hunter2"}))

    @pytest.mark.parametrize("name", ["AZURE_OPENAI_ENDPOINT", "TABLES_ENDPOINT"])
    @pytest.mark.parametrize(
        "url", ["ftp://u:hunter2@a", "u:hunter2@a", "https://u:hunter2@a:port", "https://u:hunter2@\u2100"]
    )
    def test_error_does_not_repeat_the_password_of_a_url(self, name: str, url: str) -> None:
        assert "hunter2" not in str(error_of(**{name: url}))

    @pytest.mark.parametrize("name", sorted(NAMES))
    def test_error_contains_no_words_of_python(self, name: str) -> None:
        for value in (*ODD_VALUES, *(f'{{"a": {{"input": {value}, "output": 1}}}}' for value in ODD_VALUES)):
            try:
                read(**{name: value})
            except SettingsError as error:
                message = str(error).replace(repr(value), "")
                assert not PYTHON_WORDS.search(message), message
                assert message.endswith("."), message

    @given(st.sampled_from(sorted(NAMES)), st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
    def test_random_text_is_accepted_or_the_error_names_the_setting(self, name: str, value: str) -> None:
        try:
            read(**(PEOPLE if name in PEOPLE else {}) | {name: value})
        except SettingsError as error:
            if name not in str(error):
                raise


class TestPeople:
    def test_tenant_and_client_suffice(self) -> None:
        people = read(**PEOPLE | {"AUTH_TENANT_ID": GUID.replace("1", "A"), "AUTH_CLIENT_ID": GUID.upper()}).people
        assert people
        assert (people.tenant_id, people.client_id) == (GUID.replace("1", "a"), GUID)
        assert people.authority == "https://login.microsoftonline.com"
        assert not people.roles
        assert people.accepted == {"people", "keys"}

    @pytest.mark.parametrize("name", ["AUTH_TENANT_ID", "AUTH_CLIENT_ID"])
    @pytest.mark.parametrize("others", [{}, {"AUTH_ROLES": "Chat.User"}, {"AUTH_ACCEPT": "keys"}], ids=repr)
    def test_half_of_it_is_an_error(self, name: str, others: dict[str, str]) -> None:
        error = error_of(**PEOPLE | others | {name: " "})
        assert (error.name, "is not set" in str(error)) == (name, True)

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("AUTH_TENANT_ID", "common", "is not an id such as"),
            ("AUTH_TENANT_ID", f"{GUID}0", "is not an id such as"),
            ("AUTH_CLIENT_ID", f"api://{GUID}", "is not an id such as"),
            ("AUTH_AUTHORITY", "login.microsoftonline.com", "is not a URL such as"),
            ("AUTH_AUTHORITY", "http://login.example.com", "is not a URL such as"),
            ("AUTH_AUTHORITY", "http://127.0.0.1.example.com", "is not a URL such as"),
            ("AUTH_AUTHORITY", f"https://login.microsoftonline.com/{GUID}", "is not a URL such as"),
            ("AUTH_AUTHORITY", "https://login.microsoftonline.com/?a=b", "is not a URL such as"),
            ("AUTH_AUTHORITY", "https://a.example;script-src", "is not a URL such as"),
            ("AUTH_AUTHORITY", 'https://a"b', "is not a URL such as"),
            ("AUTH_AUTHORITY", "https://a.exa\nmple", "is not a URL such as"),
            ("AUTH_AUTHORITY", "https://user:secret@login.example.com", "contains a name or password"),
            ("AUTH_ROLES", "Chat User", "is not a name such as Chat.User"),
            ("AUTH_ACCEPT", "person", "is not people, keys, or people,keys"),
            ("AUTH_ACCEPT", ",", "is not people, keys, or people,keys"),
        ],
    )
    def test_malformed_setting_is_named(self, name: str, value: str, expected: str) -> None:
        error = error_of(**PEOPLE | {name: value})
        assert (error.name, expected in str(error)) == (name, True), error
        assert "secret" not in str(error)

    @pytest.mark.parametrize(
        ("value", "authority"),
        [
            ("https://login.microsoftonline.us/", "https://login.microsoftonline.us"),
            ("HTTPS://Login.MicrosoftOnline.US", "https://login.microsoftonline.us"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://localhost:8080/", "http://localhost:8080"),
            ("https://login.example.com/?", "https://login.example.com"),
        ],
    )
    def test_authority_is_an_origin(self, value: str, authority: str) -> None:
        people = read(**PEOPLE | {"AUTH_AUTHORITY": value}).people
        assert people
        assert people.authority == authority

    @pytest.mark.parametrize("person", [f"user:{GUID}", f"user:{GUID}:ada", f"user:{GUID}:{GUID.upper()}AA", "user:*"])
    def test_limit_of_a_malformed_person_is_an_error(self, person: str) -> None:
        limits = {"LIMITS": f'{{"{person}": {{"usd_per_day": 1}}}}'}
        assert error_of(**PEOPLE | limits).name == "LIMITS"

    def test_limit_of_a_person_needs_people_who_sign_in(self) -> None:
        limits = {"LIMITS": f'{{"user:{GUID}:{GUID}": {{"usd_per_day": 1}}}}'}
        assert f"user:{GUID}:{GUID}" in read(**PEOPLE | limits).limits.by_name
        assert error_of(**limits).name == "LIMITS"


class TestOrigins:
    def test_origins_are_compared_as_they_are_set(self) -> None:
        value = (
            "https://a.example, http://localhost:5173,http://[::1]:8080 , chrome-extension://abcdefgh,, http://a:443"
        )
        assert read(CORS_ORIGINS=value).web.cors_origins == {
            *("https://a.example", "http://localhost:5173", "http://[::1]:8080", "chrome-extension://abcdefgh"),
            "http://a:443",
        }

    def test_star_is_the_whole_setting(self) -> None:
        assert read(CORS_ORIGINS=" * ").web.cors_origins == {"*"}


class TestDeployments:
    def test_deployments_are_parsed_with_model_and_version(self) -> None:
        value = "a=gpt-4.1@2025-04-14, b = gpt-4o ,c,"
        assert read(AZURE_OPENAI_MODEL="a", AZURE_OPENAI_DEPLOYMENTS=value).model.deployments == {
            "a": "gpt-4.1@2025-04-14",
            "b": "gpt-4o",
            "c": "",
        }

    def test_default_deployment_is_always_included(self) -> None:
        model = read(AZURE_OPENAI_MODEL="a", AZURE_OPENAI_DEPLOYMENTS="b=gpt-4o").model
        assert model.deployments == {"a": "", "b": "gpt-4o"}

    def test_embedding_models_are_known_by_their_name_or_set(self) -> None:
        model = read(
            AZURE_OPENAI_DEPLOYMENTS="gpt-5.4-mini=gpt-5.4-mini, a=text-embedding-3-small, nomic-embed-text, b=bge-m3,"
            "c=multilingual-e5-small, d=gpt-4o, embed-chat=gpt-4o",
            AZURE_OPENAI_EMBEDDING_DEPLOYMENTS="mine=model-7@1, d",
        ).model
        assert model.deployments == {"gpt-5.4-mini": "gpt-5.4-mini", "embed-chat": "gpt-4o"}
        assert model.embedding_deployments == {
            "a": "text-embedding-3-small",
            "nomic-embed-text": "",
            "b": "bge-m3",
            "c": "multilingual-e5-small",
            "mine": "model-7@1",
            "d": "",
        }
        assert model.all_deployments == {**model.deployments, **model.embedding_deployments}

    def test_default_deployment_must_be_for_chat(self) -> None:
        error = error_of(AZURE_OPENAI_MODEL="a", AZURE_OPENAI_DEPLOYMENTS="a=text-embedding-3-small, b")
        assert (error.name, "'a', which makes embeddings" in str(error)) == ("AZURE_OPENAI_MODEL", True)
        for listed in ("", "b"):
            error = error_of(AZURE_OPENAI_MODEL="bge-m3", AZURE_OPENAI_DEPLOYMENTS=listed)
            assert (error.name, "'bge-m3', which makes embeddings" in str(error)) == ("AZURE_OPENAI_MODEL", True)

    def test_embeddings_may_have_endpoints_and_a_key_of_their_own(self) -> None:
        model = read(AZURE_OPENAI_EMBEDDING_ENDPOINT="https://b", AZURE_OPENAI_API_KEY="a-key").model
        assert (model.endpoints, model.embedding_endpoints) == ((ENDPOINT,), ("https://b/openai/v1/",))
        assert model.embedding_api_key == "a-key"
        own = read(AZURE_OPENAI_EMBEDDING_API_KEY="b-key").model
        assert (own.embedding_endpoints, own.embedding_api_key, own.api_key) == ((ENDPOINT,), "b-key", None)
        error = error_of(AZURE_OPENAI_EMBEDDING_ENDPOINT="http://b")
        assert (error.name, "'http://b/openai/v1/'" in str(error)) == ("AZURE_OPENAI_EMBEDDING_ENDPOINT", True)


class TestMaxOutputTokens:
    @pytest.mark.parametrize(
        ("value", "chat", "other"),
        [
            ("", 128_000, 128_000),
            ("16384", 16_384, 16_384),
            ("chat=16384", 16_384, 128_000),
            (" chat = 16384 , 4096,", 16_384, 4_096),
        ],
    )
    def test_maximum_is_set_for_all_or_by_deployment(self, value: str, chat: int, other: int) -> None:
        turns = read(
            AZURE_OPENAI_MODEL="chat", AZURE_OPENAI_DEPLOYMENTS="other", AZURE_OPENAI_MAX_OUTPUT_TOKENS=value
        ).turns
        assert (turns.max_output("chat"), turns.max_output("other")) == (chat, other)

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("many", "'many' is not a number of tokens"),
            ("0", "'0' is not a number of tokens"),
            ("chat=", "'chat=' is not a number of tokens"),
            ("a b=1", "'a b=1' is not a number of tokens"),
            ("chat=1, chat=2", "chat is listed twice"),
            ("1, 2", "a number without a deployment is listed twice"),
            ("unknown=1", "unknown deployment 'unknown'"),
        ],
    )
    def test_error_names_the_malformed_part(self, value: str, expected: str) -> None:
        error = error_of(AZURE_OPENAI_MODEL="chat", AZURE_OPENAI_MAX_OUTPUT_TOKENS=value)
        assert error.name == "AZURE_OPENAI_MAX_OUTPUT_TOKENS"
        assert expected in str(error)


class TestPrices:
    def test_prices_are_exact_decimals_from_numbers_or_strings(self) -> None:
        prices = read(
            PRICES='{"chat": {"input": 0.1, "cached_input": "0.025", "cache_write": 1, "output": 1e-3}}'
        ).model.prices
        assert prices == {
            "chat": {
                "default": Rates(
                    input=Decimal("0.1"), cached_input=Decimal("0.025"), cache_write=Decimal(1), output=Decimal("0.001")
                )
            }
        }

    def test_cached_input_and_cache_write_default_to_the_input_price(self) -> None:
        prices = read(PRICES='{"chat": {"input": 2, "output": 8}}').model.prices
        assert prices["chat"]["default"] == Rates(
            input=Decimal(2), cached_input=Decimal(2), cache_write=Decimal(2), output=Decimal(8)
        )

    def test_prices_name_audio_and_service_tiers(self) -> None:
        value = '{"a": {"input": 1, "output": 2, "audio_output": 3, "Priority": {"input": 4, "output": 5}}}'
        tariff = read(PRICES=value).model.prices["a"]
        assert (tariff["default"].audio_input, tariff["default"].audio_output) == (None, Decimal(3))
        assert (tariff["priority"].input, tariff["priority"].audio_output) == (Decimal(4), None)

    @pytest.mark.parametrize("name", ["mine", "model-7", "model-7-1", "text-embedding-9"])
    def test_embeddings_need_no_output_price(self, name: str) -> None:
        value = json.dumps({name: {"input": 1}})
        prices = read(AZURE_OPENAI_EMBEDDING_DEPLOYMENTS="mine=model-7@1", PRICES=value).model.prices
        assert prices[name]["default"].output is None

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("{", "it is not JSON"),
            ("[" * 100_000, "it is not JSON"),
            ("[]", "must be a JSON object"),
            ('{"chat": 1}', "'chat' needs input and output"),
            ('{"chat": {"input": 1}}', "'chat' needs input and output"),
            ('{"chat": {"input": 1, "output": 1, "cached": 1}}', "unknown price 'cached'"),
            ('{"chat": {"input": 1, "output": 1, "priority": {"input": 1}}}', "'chat.priority' needs input and output"),
            ('{"chat": {"priority": {"input": 1, "output": 1}}}', "'chat' needs input and output"),
            ('{"chat": {"input": 1, "output": 1, "default": {"input": 1, "output": 1}}}', "without 'default'"),
            ('{"chat": {"input": 1, "output": 1, "Standard": {"input": 1, "output": 1}}}', "without 'Standard'"),
            ("1,5", "it is not JSON from line 1, column 2 on"),
            ('{"chat": {"input": 1,5, "output": 1}}', "it is not JSON from line 1, column"),
            ('{"chat": {"input": "1,5", "output": 1}}', "input of 'chat' is not a number such as 0.75: \"1,5\"."),
            ('{"chat": {"input": "1_5", "output": 1}}', 'is not a number such as 0.75: "1_5".'),
            ('{"chat": {"input": "", "output": 1}}', 'is not a number such as 0.75: "".'),
            ('{"chat": {"input": "$2", "output": 1}}', 'is not a number such as 0.75: "$2".'),
            ('{"chat": {"input": null, "output": 1}}', "is not a number such as 0.75: null."),
            ('{"chat": {"input": [1], "output": 1}}', "input of 'chat' is not a number"),
            ('{"chat": {"input": "\N{FULLWIDTH DIGIT ONE}", "output": 1}}', "input of 'chat' is not a number"),
            ('{"chat": {"input": 1e9999999999999999999, "output": 1}}', "input of 'chat' is not a number"),
            ('{"chat": {"input": %s, "output": 1}}' % ("1" * 5_000), "input of 'chat' is not an amount"),
            ('{"chat": {"input": true, "output": 1}}', "input of 'chat' is not a number"),
            ('{"chat": {"input": NaN, "output": 1}}', "input of 'chat' is not a number"),
            ('{"chat": {"input": "NaN", "output": 1}}', "input of 'chat' is not an amount"),
            ('{"chat": {"input": 1, "output": -0.1}}', "output of 'chat' is not an amount"),
            ('{"chat": {"input": 1, "output": "Infinity"}}', "output of 'chat' is not an amount"),
            ('{"chat": {"input": 1, "output": 1e6}}', "output of 'chat' is not an amount"),
            ('{"chat": {"input": 0.0000000000001, "output": 1}}', "at most 12 decimals"),
            ('{"chat": {"input": 1e-999999, "output": 1}}', "at most 12 decimals"),
        ],
    )
    def test_error_names_the_malformed_price(self, value: str, expected: str) -> None:
        error = error_of(PRICES=value)
        assert error.name == "PRICES"
        assert expected in str(error)


class TestLimits:
    ANN = f"ann={'0' * 64}"

    def test_nothing_is_limited_by_default(self) -> None:
        assert read().limits == read(LIMITS="{}").limits == Limits()

    def test_amounts_are_exact_decimals_from_numbers_or_strings(self) -> None:
        value = """{"total": {"usd_per_day": 0.1, "usd_per_month": "2"}, "anonymous": {"requests_per_minute": 3},
            "key:ann": {"tokens_per_minute": 4000, "max_tokens": 500}, "*": {},
            "session": {"usd": 1e-3, "max_tokens": 600}}"""
        assert read(LIMITS=value, CLIENT_KEYS=self.ANN).limits == Limits(
            by_name={
                "total": Limit(name="total", usd_per_day=Decimal("0.1"), usd_per_month=Decimal(2)),
                "anonymous": Limit(name="anonymous", requests_per_minute=3),
                "key:ann": Limit(name="key:ann", tokens_per_minute=4_000, max_tokens=500),
                "*": Limit(name="*"),
            },
            session_usd=Decimal("0.001"),
            session_max_tokens=600,
        )

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("10", "must be a JSON object such as"),
            ('{"total": ', "is not JSON from line 1, column 10 on"),
            (
                '{"total": 10}',
                "'total' must be a JSON object of limits (usd_per_day, usd_per_month, requests_per_minute",
            ),
            *(
                (f'{{"total": {{"usd_per_day": 1, "fallback_deployment": {each}}}}}', "is not the name of a deployment")
                for each in ("null", '""', '"a b"', '["a"]')
            ),
            ('{"total": {"usd_per_day": 1, "fallback_deployment": "b"}}', "in 'total', where it has no effect"),
            ('{"*": {"max_tokens": 1, "fallback_deployment": "b"}}', "in '*', where it has no effect"),
            (
                '{"*": {"usd_per_day": 1, "fallback_deployment": "z"}}',
                "names the unknown deployment 'z'. For chat: ",
            ),
            ('{"session": {"usd": 1, "fallback_deployment": "chat"}}', "the unknown limit 'fallback_deployment'"),
            ('{"session": null}', "'session' must be a JSON object of limits (usd, max_tokens)"),
            ('{"total": {"usd": 10}}', "'total' has the unknown limit 'usd'. Known are usd_per_day,"),
            ('{"session": {"usd_per_day": 1}}', "'session' has the unknown limit 'usd_per_day'. Known are usd, max_"),
            ('{"total": {"name": "a"}}', "'total' has the unknown limit 'name'"),
            ('{"total": {"usd_per_day": -1}}', "usd_per_day of 'total' is not an amount in USD from 0"),
            ('{"total": {"usd_per_day": "much"}}', """usd_per_day of 'total' is not a number such as 0.75: "much"."""),
            ('{"total": {"usd_per_month": NaN}}', "usd_per_month of 'total' is not a number such as 0.75: NaN."),
            (
                '{"total": {"usd_per_month": 1000000}}',
                "usd_per_month of 'total' is not an amount in USD from 0 to below",
            ),
            ('{"session": {"usd": true}}', "usd of 'session' is not a number such as 0.75: true."),
            (
                '{"*": {"requests_per_minute": 0}}',
                "requests_per_minute of '*' is not a whole number from 1 to 999,999,",
            ),
            ('{"*": {"tokens_per_minute": 1.5}}', "tokens_per_minute of '*' is not a whole number from 1"),
            ('{"*": {"tokens_per_minute": 1000000000}}', "tokens_per_minute of '*' is not a whole number from 1"),
            ('{"anonymous": {"max_tokens": null}}', "max_tokens of 'anonymous' is not a whole number from 1"),
            ('{"total": {}, "total": {}}', "it has 'total' twice"),
            ('{"total": {"max_tokens": 1, "max_tokens": 2}}', "it has 'max_tokens' twice"),
            (
                '{"ann": {}}',
                "has the unknown caller 'ann'. Known are 'total', 'anonymous', '*', 'session', user:TENANT",
            ),
            ('{"key:ben": {}}', "has the unknown caller 'key:ben'. Known are"),
            ('{"key:": {}}', "in CLIENT_KEYS: 'key:ann'."),
        ],
    )
    def test_error_names_the_place(self, value: str, expected: str) -> None:
        error = error_of(LIMITS=value, CLIENT_KEYS=self.ANN)
        assert error.name == "LIMITS"
        assert expected in str(error)

    def test_error_says_that_no_caller_has_a_name(self) -> None:
        assert str(error_of(LIMITS='{"key:ann": {}}')).endswith("the names in CLIENT_KEYS: none.")


class TestApp:
    def test_app_imports_with_an_empty_environment(self) -> None:
        program = "import function_app; print(len(function_app.app.get_functions()))"
        process = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=ROOT,
            env={},
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        assert int(process.stdout) >= 6

    @pytest.mark.parametrize("name", ["AZURE_OPENAI_ENDPOINT", "TABLES_CONNECTION_STRING", "PRICES"])
    async def test_invalid_setting_returns_500_that_names_it_until_it_is_corrected(
        self, serve: Serve, environ: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch, fake: AzureOpenAI
    ) -> None:
        async with serve(environ | {name: "hunter2" if name == "PRICES" else ""}) as api:
            response = await api.post("/api/chat", json={"message": "hi"})
            assert response.status_code == 500
            assert name.removesuffix("_CONNECTION_STRING") in response.json()["error"]["message"]
            assert "hunter2" not in response.text
            assert "Traceback" not in response.text
            assert fake.meter == []
            monkeypatch.setenv(name, environ[name])
            await answer(api)

    async def test_unresolved_key_vault_reference_returns_503_with_retry_after(
        self, serve: Serve, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with serve(
            environ | {"AZURE_OPENAI_API_KEY": "@Microsoft.KeyVault(SecretUri=https://v/secrets/s)"}
        ) as api:
            response = await api.post("/api/chat", json={"message": "hi"})
            assert (response.status_code, response.headers["retry-after"]) == (503, "30")
            for text in ("AZURE_OPENAI_API_KEY", "'503: Key Vault' in docs/troubleshooting.md"):
                assert text in response.json()["error"]["message"]
            monkeypatch.setenv("AZURE_OPENAI_API_KEY", environ["AZURE_OPENAI_API_KEY"])
            await answer(api)

    async def test_health_route_needs_no_settings(self, serve: Serve) -> None:
        async with serve({}) as api:
            assert (await api.get("/api/health", headers={"x-functions-key": FUNCTION_KEY})).json() == {"status": "ok"}
