"""Secrets are known by their names and by their shapes, and nothing else is taken for one."""

import json

import pytest
import yaml

from recipe.flowrl.common import secrets
from recipe.flowrl.common.secrets import MASK, is_secret_name, mask, masked

HEX = "0123456789abcdef0123456789abcdef01234567"
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc/+=\n-----END RSA PRIVATE KEY-----"
NAMES = [
    "api_key",
    "api-key",
    "apikey",
    "apiKey",
    "API_KEY",
    "WANDB_API_KEY",
    "openai_api_key",
    "x-api-key",
    "token",
    "HF_TOKEN",
    "hub_token",
    "auth_token",
    "access_token",
    "HUGGING_FACE_HUB_TOKEN",
    "github_token",
    "secret",
    "client_secret",
    "AWS_SECRET_ACCESS_KEY",
    "aws_access_key_id",
    "aws_session_token",
    "password",
    "passwd",
    "db_password",
    "PGPASSWORD",
    "passphrase",
    "credentials",
    "Authorization",
    "private_key",
    "ssh_key",
    "api_key_2",
    "secrets",
    "api.key",
    "key",
    "AZURE_STORAGE_CONNECTION_STRING",
    "slack_webhook_url",
    "ACCOUNT_KEY",
    "accessToken",
    "MYSQL_PWD",
]
HARMLESS = [
    "max_token_len",
    "pad_token",
    "eos_token_id",
    "token_level_loss",
    "tokenizer",
    "ppo_max_token_len_per_gpu",
    "prompt_key",
    "reward_fn_key",
    "keys",
    "monkey",
    "authors",
    "max_num_batched_tokens",
    "loss_agg_mode",
    "secretary",
    "num_key_value_heads",
    "passes",
    "pass_k",
    "author",
]
SHAPES = [
    "hf_abcdefghijklmnopqrstuvwxyz012345",
    "sk-abcdefghijklmnopqrstuvwx",
    "sk-proj-abc_def-ghijklmnopqrstuvwx",
    "sk-ant-api03-abcdefghijklmnop",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_11ABCDEFG0abcdefghijkl_x",
    "glpat-abcdefghijklmnopqrst",
    "AKIAIOSFODNN7EXAMPLE",
    "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "xoxb-123456789012-abcdef",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmN",
    PEM,
    "nvapi-abcdefghijklmnopqrst",
    "pypi-AgEIcHlwaS5vcmcabcdef",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["hunter2!", "two words", "line one\nline two", 12345678, "cGFzc3dvcmQ="])
def test_a_name_says_it(name: str, value: str | int) -> None:
    config = {"a": [{"env_vars": {name: value}}, {name: [value, {"x": "y"}]}], name: value}
    shown = masked(config)
    assert str(value) not in json.dumps(shown) and json.dumps(value)[1:-1] not in json.dumps(shown)
    assert shown["a"][1][name][1] == {"x": "y"}, "what is no secret stays"


@pytest.mark.parametrize("name", HARMLESS)
def test_other_names_stay(name: str) -> None:
    assert not is_secret_name(name)
    assert masked({name: "content"}) == {name: "content"}
    assert mask(f"{name}=content {name}: content") == f"{name}=content {name}: content"


@pytest.mark.parametrize("value", SHAPES)
@pytest.mark.parametrize("form", ["{}", "x={}", "error at {}: no", '{{"a": "{}"}}', "(see {})", "['{}']", "--with={}"])
def test_a_shape_says_it(value: str, form: str) -> None:
    shown = mask(form.format(value))
    assert value not in shown and value[-8:] not in shown and MASK in shown
    assert masked({"model": {"note": [form.format(value)]}})["model"]["note"][0] == shown


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@host/path",
        "redis://:hunter2@host:6379",
        "postgresql+psycopg://me:hunter2@db/x",
        "http://user:hunter2@[::1]:80/",
        "https://hunter2@github.com/x",
        "http://u:p@hunter2@host/",
        "http://u:a/hunter2@host",
        "Authorization: Bearer hunter2hunter2",
        "authorization=Basic aHVudGVyMg==hunter2",
        "bearer hunter2hunter2",
        "https://host/?api_key=hunter2&x=1",
        "https://host/?a=1&token=hunter2",
        "password: hunter2",
        "'password': 'hunter2'",
        '"db_password" : "hunter2 and more"',
        "export WANDB_API_KEY=hunter2",
        "--api-key hunter2",
        "--api-key=hunter2",
        "++ray_kwargs.ray_init.runtime_env.env_vars.WANDB_API_KEY=hunter2",
        "api_key='it\\'s hunter2'",
        "{api_key:hunter2}",
        'password="hunter2" user=me',
        "trainer.wandb.token=hunter2",
        "error: password=hunter2",
        "--set=api_key=hunter2",
    ],
)
def test_text_is_masked(text: str) -> None:
    shown = mask(text)
    assert "hunter2" not in shown and MASK in shown
    assert mask(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "token: null",
        "password=",
        "ratio 3:4 at 10:20",
        "https://host/path?x=1",
        "git@host:path",
        "step 1/2  log Z -1.2",
        "a@b.c",
        "key: value pairs are read" + "",
        "model revision=" + HEX,
        "https://host/a@b",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert mask(text) == text or text.startswith("key:")


def test_a_bare_key_of_forty_digits() -> None:
    assert masked({"wandb": HEX, "revision": HEX, "model_sha1": HEX}) == {
        "wandb": MASK,
        "revision": HEX,
        "model_sha1": HEX,
    }


def test_known_secrets_are_masked_wherever_they_turn_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "_known", set())
    config = {"env_vars": {"MY_PASSWORD": "first\nsecond line"}, "url": "http://me:swordfish@host", "beta": 15.0}
    secrets.remember(config)
    shown = mask(f"{config} second line, swordfish at 15.0")
    assert "second line" not in shown and "swordfish" not in shown and "first" not in shown and "15.0" in shown


def test_yaml_of_a_configuration_is_masked_before_it_is_written() -> None:
    config = {"reward": {"api-key": "a\nb"}, "list": [{"password": "x" * 200}]}
    assert yaml.safe_load(yaml.safe_dump(masked(config))) == {"reward": {"api-key": MASK}, "list": [{"password": MASK}]}


def test_masking_takes_time_that_grows_with_the_text() -> None:
    import time

    for hostile in (
        "a" * 200_000,
        "api_key" * 30_000,
        "http://" + "a:" * 50_000,
        "token=" * 30_000,
        '"' * 100_000,
        "a-" * 100_000,
        "x_key_" * 30_000,
    ):
        started = time.monotonic()
        mask(hostile)
        assert time.monotonic() - started < 5, hostile[:20]
