"""The [shared] part: its digest, and what is said when two peers differ."""

from pathlib import Path

import pytest

from lowcomm.config.fields import settings
from lowcomm.config.load import differing_keys, load_config, run_settings, shared_digest, shared_settings
from lowcomm.errors import ConfigError


def test_settings_are_flat_and_only_shared() -> None:
    settings = shared_settings(load_config(None, ["shared.codec.name=fp32"]))
    assert settings["shared.codec.name"] == "fp32"
    assert settings["shared.run_id"] == "lowcomm"
    assert all(key.startswith("shared.") for key in settings)


@pytest.mark.parametrize(
    "override",
    ["train.steps=7", "data.shard=3", "out=elsewhere", "exchange.lease_s=9", "metrics.wandb=off"],
)
def test_local_settings_leave_the_digest(override: str) -> None:
    assert shared_digest(load_config(None, [override])) == shared_digest(load_config(None))


@pytest.mark.parametrize("override", ["shared.seed=1", "shared.run_id=b", "shared.model.rope_theta=10001"])
def test_shared_settings_change_the_digest(override: str) -> None:
    assert shared_digest(load_config(None, [override])) != shared_digest(load_config(None))


@pytest.mark.parametrize(
    "pair",
    [("shared.inner.lr=1", "shared.inner.lr=1.0"), ("shared.inner.lr=0.0", "shared.inner.lr=-0.0")],
    ids=["integer-for-float", "minus-zero"],
)
def test_equal_settings_have_equal_digests(pair: tuple[str, str]) -> None:
    first, second = (shared_digest(load_config(None, [override])) for override in pair)
    assert first == second


def test_digest_is_64_hex_characters() -> None:
    digest = shared_digest(load_config(None))
    assert len(bytes.fromhex(digest)) == 32


def test_differing_keys() -> None:
    mine = shared_settings(load_config(None))
    theirs = shared_settings(
        load_config(None, ["shared.codec.name=fp32", "shared.model.tie_embeddings=true"])
    )
    assert differing_keys(mine, theirs) == [
        "shared.codec.name: here int8, there fp32",
        "shared.model.tie_embeddings: here false, there true",
    ]
    assert differing_keys(mine, mine) == []


def test_differing_keys_of_another_version_or_a_hostile_peer() -> None:
    assert differing_keys({"a": 1, "b": ""}, {"c": "x\n" * 999, "b": None}) == [
        "a: here 1, there nothing",
        'b: here "", there null',
        "c: here nothing, there " + ('"' + r"x\n" * 99)[:77] + "...",
    ]


def test_peers_compare_what_the_schema_calls_run_wide_and_profiles_may_set_none_of_it(tmp_path: Path) -> None:
    config = load_config(None)
    compared = run_settings(config)
    assert compared.keys() == shared_settings(config).keys() | {"train.steps", "train.tokens"}
    profile = tmp_path / "p.toml"
    for path in compared:
        default = settings()[path].default
        profile.write_text(
            f"{path} = {str(default).lower() if not isinstance(default, str) else repr(default)}"
        )
        with pytest.raises(ConfigError, match=rf"p.toml: {path}: expected settings of one island"):
            load_config(None, profile=str(profile))
