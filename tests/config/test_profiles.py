"""Profiles: found by name or file, merged between recipe and --set, refused where they speak for others."""

from pathlib import Path

import pytest

from lowcomm.config.load import load_config, shared_digest
from lowcomm.errors import ConfigError

RECIPES = Path(__file__).parents[2] / "recipes"
PROFILES = sorted((RECIPES / "profiles").glob("*.toml"))
PROMISED = {"consumer-24gb-offload", "8xa100-fsdp2", "8xh100-hsdp", "deepspeed-zero3", "cpu"}


def refusal(recipe: Path | None, profile: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, profile=profile)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_promised_profiles_are_there() -> None:
    assert {path.stem for path in PROFILES} == PROMISED


@pytest.mark.parametrize("recipe", ["150m", "1b"])
@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_fits_the_recipes_and_leaves_the_run_as_it_is(recipe: str, profile: Path) -> None:
    path = RECIPES / f"{recipe}.toml"
    config, plain = load_config(path, profile=profile.stem), load_config(path)
    assert config != plain
    assert shared_digest(config) == shared_digest(plain)
    assert config.train.steps == plain.train.steps


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_says_what_it_needs(profile: Path) -> None:
    header = profile.read_text().split("\n[")[0]
    for word in ("Hardware:", "Memory:", "Status:", "Run:"):
        assert word in header
    assert ("not run here" in header) is (profile.stem != "cpu")


def test_recipe_then_profile_then_set(tmp_path: Path) -> None:
    recipe, profile = tmp_path / "r.toml", tmp_path / "p.toml"
    recipe.write_text("[train]\nbatch_size = 2\nthreads = 3\nlog_every = 5\n")
    profile.write_text("[train]\nbatch_size = 4\nthreads = 6\n")
    config = load_config(recipe, ["train.batch_size=8"], profile=str(profile))
    assert (config.train.batch_size, config.train.threads, config.train.log_every) == (8, 6, 5)


def test_profiles_beside_the_recipe_come_first(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "r.toml").write_text("")
    assert load_config(tmp_path / "r.toml", profile="cpu").train.device == "cpu"
    (tmp_path / "profiles" / "cpu.toml").write_text("[train]\nthreads = 7\n")
    config = load_config(tmp_path / "r.toml", profile="cpu")
    assert (config.train.device, config.train.threads) == ("auto", 7)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("[shared.inner]\nlr = 1.0\n", "shared.inner.lr"),
        ("[shared]\nseed = 1\n[train]\nsteps = 5\nthreads = 1\n", "shared.seed, train.steps"),
        ("[train]\ntokens = 1000\nbatch_size = 2\n", "train.tokens"),
    ],
    ids=["shared", "and-steps", "tokens"],
)
def test_a_profile_that_speaks_for_the_others_is_refused(tmp_path: Path, text: str, keys: str) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text)
    message = refusal(RECIPES / "150m.toml", str(file))
    assert message.startswith(f"{file}: ")
    assert sorted(message.split(": ")[1].split(", ")) == sorted(keys.split(", "))
    assert "move them into the recipe" in message


def test_no_such_profile() -> None:
    message = refusal(RECIPES / "150m.toml", "8xa100")
    assert "did you mean 8xa100-fsdp2?" in message
    assert all(name in message for name in PROMISED)
    assert "expected a profile, got no such file" in refusal(None, "nowhere/x.toml")


def test_a_profile_that_contradicts_the_recipe_names_both() -> None:
    message = refusal(RECIPES / "quickstart.toml", "deepspeed-zero3")
    assert "quickstart.toml with " in message
    assert "deepspeed-zero3.toml: shared.inner.name: expected adamw" in message
