"""Profiles: what one island says beside the recipe that all share, e.g. its engine and its batches.

A recipe is the run; a profile is a machine. Merged as recipe < profile < `--set`. What has to be
equal on all islands stands in the recipe only, so that islands of unlike profiles fit together.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lowcomm.config.fields import settings
from lowcomm.config.values import closest
from lowcomm.errors import ConfigError

FOLDER = "profiles"
RECIPES = Path(__file__).parents[1] / "recipes"
"""Those that come with the package."""


def find_profile(name: str, recipe: Path | None) -> Path:
    """The file of a profile.

    Args:
        name: a path (with a slash or `.toml`), or the name of a file in `profiles/` beside the recipe
            or in `lowcomm/recipes/`.
        recipe: the run's, if there is one.

    Raises:
        ConfigError: there is no such profile; names those that are there.
    """
    if "/" in name or name.endswith(".toml"):
        return Path(name)
    folders = [folder / FOLDER for folder in (recipe and recipe.parent, RECIPES) if folder]
    for folder in folders:
        if (folder / f"{name}.toml").is_file():
            return folder / f"{name}.toml"
    names = sorted({path.stem for folder in folders for path in folder.glob("*.toml")})
    guess = closest(name, names)
    raise ConfigError(
        f"--profile {name}: expected the path of a file, or one of {', '.join(names) or '(none is there)'}"
        + (f"; did you mean {guess}?" if guess else "")
    )


def check_local(paths: Iterable[str], source: str) -> None:
    """Refuse a profile that decides for the other islands.

    Args:
        paths: the dotted paths of what it sets.
        source: its file, for the error.

    Raises:
        ConfigError: it sets something that all islands share; names the keys.
    """
    foreign = [path for path in paths if settings()[path].run_wide]
    if foreign:
        raise ConfigError(
            f"{source}: {', '.join(foreign)}: expected settings of one island in a profile, but all islands "
            "of a run share these; move them into the recipe"
        )
