"""Recipes: what is read, what is refused and in which words."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lowcomm.config.load import from_dict, load_config, to_dict, to_toml
from lowcomm.config.schema import Config
from lowcomm.errors import ConfigError

RECIPES = sorted(
    path
    for path in (Path(__file__).parents[2] / "recipes").rglob("*.toml")
    if "[[runs]]" not in path.read_text() and path.parent.name not in ("profiles", "corpora")
)


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_no_recipe_is_the_defaults() -> None:
    assert load_config(None, []) == Config()


def test_recipe_and_overrides_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, "[shared.schedule]\ninner_steps = 50\ndelay = 2\n[shared.inner]\nlr = 1\n")
    config = load_config(path, ["shared.schedule.inner_steps=60", "shared.schedule.inner_steps = 70"])
    assert config.shared.schedule.inner_steps == 70
    assert config.shared.schedule.delay == 2
    assert config.shared.inner.lr == 1.0
    assert isinstance(config.shared.inner.lr, float)


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        pytest.param("data.source=/data/*.txt", "data.source", "/data/*.txt", id="bare-text"),
        pytest.param('data.source="a b"', "data.source", "a b", id="quoted-text"),
        pytest.param("shared.run_id=2024", "shared.run_id", "2024", id="text-that-looks-like-a-number"),
        pytest.param("data.source=a = b\nc = 1", "data.source", "a = b\nc = 1", id="line-break-adds-no-key"),
        pytest.param("shared.schedule.delay=auto", "shared.schedule.delay", "auto", id="word-for-a-number"),
        pytest.param("shared.inner.lr=1e-3", "shared.inner.lr", 1e-3, id="exponent"),
        pytest.param("shared.model.tie_embeddings=true", "shared.model.tie_embeddings", True, id="bool"),
        pytest.param("train.steps=1_000", "train.steps", 1000, id="underscore"),
        pytest.param('exchange.initial_peers=["/ip4/1"]', "exchange.initial_peers", ["/ip4/1"], id="list"),
        pytest.param(
            "shared.codec.error_feedback=true", "shared.codec.error_feedback", "on", id="true-is-on"
        ),
        pytest.param('shared.codec={name="bf16"}', "shared.codec.name", "bf16", id="table"),
    ],
)
def test_override_values(override: str, path: str, value: object) -> None:
    found: object = to_dict(load_config(None, [override]))
    for name in path.split("."):
        assert isinstance(found, dict)
        found = found[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        pytest.param("shared.schedule.inner_stps", "shared.schedule.inner_steps", id="typo"),
        pytest.param("inner_steps", "shared.schedule.inner_steps", id="without-section"),
        pytest.param("schedule.inner_steps", "shared.schedule.inner_steps", id="without-shared"),
        pytest.param("train.batchsize", "train.batch_size", id="without-underscore"),
        pytest.param("shard.codec.name", "shared.codec.name", id="typo-in-section"),
    ],
)
def test_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    assert refusal(None, f"{key}=1") == f"--set: {key}: unknown key; did you mean {nearest}?"


def test_unknown_key_in_a_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "[shared.schedule]\ninner_stps = 3\n")
    expected = "shared.schedule.inner_stps: unknown key; did you mean shared.schedule.inner_steps?"
    assert refusal(path) == f"{path}: {expected}"


def test_unknown_key_like_no_other_lists_the_section() -> None:
    assert refusal(None, "shared.codec.zzz=1") == (
        "--set: shared.codec.zzz: unknown key; [shared.codec] has name, error_feedback, error_feedback_decay"
    )


def test_unknown_key_with_a_line_break_stays_one_line(tmp_path: Path) -> None:
    assert r'"a\nb"' in refusal(write(tmp_path, '"a\\nb" = 1\n'))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param(
            "train.steps=1.0", "train.steps: expected an integer of at least 1, got 1.0", id="float"
        ),
        pytest.param(
            "train.steps=true", "train.steps: expected an integer of at least 1, got true", id="bool"
        ),
        pytest.param(
            "shared.schedule.delay=never",
            'shared.schedule.delay: expected an integer of at least 0 or "auto", got "never"',
            id="word",
        ),
        pytest.param("train.steps=0", "train.steps: expected an integer of at least 1, got 0", id="too-low"),
        pytest.param(
            "shared.seed=2147483648",
            "shared.seed: expected an integer from 0 to 2147483647, got 2147483648",
            id="too-high",
        ),
        pytest.param(
            f"train.steps={2**63}",
            f"train.steps: expected an integer of 64 bits, got {2**63}",
            id="more-than-64-bits",
        ),
        pytest.param(
            "shared.inner.lr=nan", "shared.inner.lr: expected a number from 0 to 10, got nan", id="nan"
        ),
        pytest.param(
            "shared.inner.clip_norm=inf",
            "shared.inner.clip_norm: expected a number of at least 0, got inf",
            id="inf",
        ),
        pytest.param(
            "shared.inner.lr=true", "shared.inner.lr: expected a number from 0 to 10, got true", id="bool-lr"
        ),
        pytest.param(
            "exchange.relay=1", "exchange.relay: expected true or false, got 1", id="integer-for-bool"
        ),
        pytest.param(
            "shared.codec.name=in8",
            'shared.codec.name: expected one of "fp32", "bf16", "int8", "int4", "e3m0", "2bit", "topk", '
            'got "in8"; did you mean "int8"?',
            id="choice",
        ),
        pytest.param(
            "exchange.listen=/ip4/0.0.0.0/tcp/1",
            'exchange.listen: expected a list of texts, got "/ip4/0.0.0.0/tcp/1"; '
            'write ["/ip4/0.0.0.0/tcp/1"]',
            id="text-for-list",
        ),
        pytest.param(
            "exchange.listen=[1]", "exchange.listen: expected a list of texts, got [1]", id="list-of-numbers"
        ),
        pytest.param(
            "shared.codec=int8", 'shared.codec: expected a table of settings, got "int8"', id="text-for-table"
        ),
        pytest.param(
            "data.source=\udcff", r'data.source: expected text in quotes, got "\udcff"', id="no-utf8"
        ),
    ],
)
def test_wrong_value(override: str, message: str) -> None:
    assert refusal(None, override) == f"--set: {message}"


@pytest.mark.parametrize("override", ["", "train.steps", "=3"])
def test_override_without_key_or_value(override: str) -> None:
    assert "expected KEY=VALUE" in refusal(None, override)


@pytest.mark.parametrize(
    ("overrides", "path", "words"),
    [
        pytest.param(["island.name=a b"], "island.name", "1 to 64 characters of A-Z a-z", id="name"),
        pytest.param(["island.replicas=2"], "island.replicas", "fsdp2 with it, got auto", id="replicas"),
        pytest.param(["island.offload=all"], "island.offload", "got auto", id="offload"),
        pytest.param(
            ["island.engine=fsdp2", "island.offload=optimizer"],
            "island.offload",
            "none or all",
            id="fsdp2-offload",
        ),
        pytest.param(
            ["island.deepspeed_config=x.json"], "island.deepspeed_config", "got auto", id="ds-config"
        ),
        pytest.param(
            ["island.engine=deepspeed", "shared.inner.name=muon"],
            "shared.inner.name",
            "expected adamw",
            id="zero-muon",
        ),
        pytest.param(["shared.model.dim=161"], "shared.model.dim", "multiple of heads = 5", id="heads"),
        pytest.param(["shared.model.dim=165"], "shared.model.dim", "165 / 5 = 33", id="odd-head-size"),
        pytest.param(
            ["shared.model.kv_heads=2"], "shared.model.kv_heads", "divisor of heads = 5", id="kv-heads"
        ),
        pytest.param(
            ["shared.model.kv_heads=10"],
            "shared.model.kv_heads",
            "divisor of heads = 5",
            id="more-kv-heads-than-heads",
        ),
        pytest.param(
            ["shared.schedule.delay=30"], "shared.schedule.delay", "less than inner_steps = 30", id="delay"
        ),
        pytest.param(
            ["shared.schedule.eager=true"], "shared.schedule.eager", "false with delay = 0", id="eager"
        ),
        pytest.param(["data.shard=8"], "data.shard", "below shared.data.shards = 8", id="shard"),
        pytest.param(
            ["exchange.expected_peers=9"], "exchange.expected_peers", "at most", id="expected-peers"
        ),
        pytest.param(
            ["shared.round.min_participants=9"], "shared.round.min_participants", "at most", id="quorum"
        ),
        pytest.param(["exchange.listen=[]"], "exchange.listen", "at least one address", id="no-address"),
        pytest.param(['exchange.listen=[""]'], "exchange.listen", "multiaddr", id="empty-address"),
        pytest.param(
            ['exchange.initial_peers=[" "]'], "exchange.initial_peers", "not empty", id="empty-initial-peer"
        ),
        pytest.param(
            ["exchange.found=true", 'exchange.initial_peers=["/ip4/1.2.3.4/tcp/5/p2p/x"]'],
            "exchange.found",
            "leave out one of the two",
            id="found-and-join",
        ),
        pytest.param(
            ['exchange.announce=["/ip4/1.2.3.4/tcp/0"]'], "exchange.announce", "port", id="announced-port-0"
        ),
        pytest.param(["exchange.lease_s=1.5"], "exchange.lease_s", "twice heartbeat_s = 1.0", id="lease"),
        pytest.param(
            ["exchange.kind=process_group", "exchange.group_size=2"],
            "exchange.group_address",
            "host:port",
            id="no-group-address",
        ),
        pytest.param(
            ["exchange.kind=process_group", "exchange.group_rank=1"],
            "exchange.group_rank",
            "less than group_size = 1",
            id="group-rank",
        ),
        pytest.param(["shared.run_id="], "shared.run_id", "1 to 64 characters", id="empty-run-id"),
        pytest.param([f"shared.run_id={'x' * 65}"], "shared.run_id", "1 to 64 characters", id="long-run-id"),
        pytest.param(["shared.run_id=a/b"], "shared.run_id", 'got "a/b"', id="run-id-with-slash"),
        pytest.param(['shared.run_id="a\\n"'], "shared.run_id", r'got "a\n"', id="run-id-with-line-break"),
        pytest.param(["train.device=gpu"], "train.device", '"cuda:N", got "gpu"', id="device"),
        pytest.param(["out="], "out", "not empty", id="no-run-folder"),
        pytest.param(["data.source="], "data.source", "not empty", id="no-source"),
    ],
)
def test_settings_that_do_not_fit_together(
    tmp_path: Path, overrides: list[str], path: str, words: str
) -> None:
    message = refusal(None, *overrides)
    assert message.startswith(f"{path}: expected ")
    assert words in message
    recipe = write(tmp_path, "")
    assert refusal(recipe, *overrides) == f"{recipe}: {message}"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"[shared\n", "expected TOML", id="syntax"),
        pytest.param(b"a = 1\na = 2\n", "expected TOML", id="twice"),
        pytest.param(b"a = " + b"[" * 20_000, "expected TOML", id="deep"),
        pytest.param(b"train.steps = " + b"9" * 5_000, "expected TOML", id="endless-integer"),
        pytest.param(b"a = '\xff'\n", "expected UTF-8 text", id="no-utf8"),
        pytest.param(b"[train]\nsteps = 2024-01-01\n", "got 2024-01-01", id="date"),
        pytest.param(b"shared = 3\n", "expected a table of settings, got 3", id="value-for-section"),
        pytest.param(b"[out]\n", "expected text in quotes, got a table", id="section-for-value"),
    ],
)
def test_recipe_that_cannot_be_used(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(content)
    message = refusal(path)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_missing_recipe_names_its_neighbour(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    typo = tmp_path / "recpe.toml"
    assert refusal(typo) == f"{typo}: expected a recipe, got no such file; did you mean {path}?"


def test_folder_for_a_recipe(tmp_path: Path) -> None:
    assert refusal(tmp_path).startswith(f"{tmp_path}: expected a recipe, got: Is a directory")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads(recipe: Path) -> None:
    config = load_config(recipe, [])
    assert from_dict(to_dict(config)) == config


def test_dict_round_trip() -> None:
    config = load_config(None, ['exchange.listen=["/a", "/b"]', "shared.inner.lr=0.1"])
    assert from_dict(to_dict(config)) == config


@given(
    out=st.text(min_size=1).filter(lambda text: bool(text.strip())),
    addresses=st.lists(st.text().map(lambda text: "/" + text)),
    lr=st.floats(0.0, 10.0),
    steps=st.integers(1, 2**63 - 1),
    tied=st.booleans(),
)
def test_toml_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    out: str,
    addresses: list[str],
    lr: float,
    steps: int,
    tied: bool,
) -> None:
    config = from_dict(
        {
            "out": out,
            "shared": {"inner": {"lr": lr}, "model": {"tie_embeddings": tied}},
            "train": {"steps": steps},
            "exchange": {"initial_peers": addresses},
        }
    )
    path = tmp_path_factory.mktemp("toml") / "config.toml"
    path.write_bytes(to_toml(config).encode())
    assert load_config(path, []) == config


def test_toml_has_the_documentation() -> None:
    text = to_toml(Config())
    assert "# inner steps between two rounds of a fragment (H)\ninner_steps = 30\n" in text
