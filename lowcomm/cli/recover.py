"""`lowcomm recover RUN`: go on after most of those who may decide are lost for good."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lowcomm.cli.common import EXIT_DONE, Subparsers, add_command, add_json, check_writable, write_json
from lowcomm.errors import ConfigError, ProtocolError, StorageError
from lowcomm.types import PeerId

if TYPE_CHECKING:
    from lowcomm.config.schema import Config
    from lowcomm.exchanges.fields import Fields
    from lowcomm.ledger.mandate import Mandate


def add_parser(commands: Subparsers) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "recover",
        about="let a run with partition = majority go on after most of its islands are lost for good",
        example="lowcomm recover runs/demo/island-0 --members island-0,island-3 --key operator.key\n"
        "         lowcomm recover --make-key operator.key",
    )
    parser.add_argument(
        "run_dir", metavar="RUN", type=Path, nargs="?", help="folder of an island that runs and stands still"
    )
    parser.add_argument(
        "--members",
        metavar="A,B,...",
        help="names or peer ids of the islands of which more than half decide the next outer step (default: "
        "all that are here)",
    )
    parser.add_argument(
        "--key", metavar="FILE", type=Path, help="private key of the run's operator (shared.round.operator)"
    )
    parser.add_argument(
        "--replace", action="store_true", help="take the place of a mandate that came to nothing"
    )
    parser.add_argument(
        "--make-key", metavar="FILE", type=Path, help="make an operator's key; prints shared.round.operator"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Write the mandate into the run folder, where the island takes it up; or make a key."""
    if (args.make_key is None) == (args.run_dir is None):
        raise ConfigError("recover: expected RUN, or --make-key FILE; `lowcomm recover --help` has examples")
    if args.make_key is not None:
        return _make_key(args.make_key)
    check_writable(args.json)
    from lowcomm.recovery.mandates import Given, mandate_path, write_mandate

    folder: Path = args.run_dir
    config = _config(folder)
    standstill = _standstill(folder)
    members = _members(args.members, standstill)
    mandate = _numbered(folder, _mandate(members, standstill), again=args.replace)
    mandate = _signed(mandate, config.shared.round.operator, args.key)
    path = mandate_path(folder, mandate)
    try:
        if not path.exists():  # an island that goes by it already has noted so there
            write_mandate(folder, Given(mandate))
    except OSError as error:
        raise StorageError(f"{path}: the mandate can't be written: {error.strerror or error}") from error
    names = standstill.mapping("names")
    called = ", ".join(str(names.get(peer) or peer) for peer in members)
    away = ", ".join(str(names.get(p) or p) for p in standstill.texts("away", 4_096))
    rest = (
        "the island takes it up within seconds, and tells the others"
        if mandate.operator
        else "the island takes it up within seconds. The run names no operator, so that of each other island "
        f"runs `lowcomm recover` with --members {','.join(members)}, too"
    )
    steps = ", ".join(f"{step + 1} of fragment {f}" for f, (step, _) in sorted(mandate.positions.items()))
    print(
        f"lowcomm: mandate {mandate.digest[:12]}: outer step {steps}: more than half of {called} decide it, "
        f"without {away}; {rest}. What only those that are lost had committed is lost with them",
        file=sys.stderr,
    )
    if args.json:
        write_json(args.json, {"mandate": mandate.digest, "file": str(path), **mandate.to_json()})
    return EXIT_DONE


def _make_key(path: Path) -> int:
    from lowcomm.exchanges.swarm.identity import IdentityFile

    file = IdentityFile(path)
    try:
        print(f"lowcomm: the key is in {path}; keep it where no island is", file=sys.stderr)
        print(f"shared.round.operator={file.identity.peer_id}")
    finally:
        file.close()
    return EXIT_DONE


def _config(folder: Path) -> Config:
    from lowcomm.config.load import load_config

    recipe = folder / "config.toml"
    if not recipe.is_file():
        raise StorageError(f"{folder}: expected the run folder of an island, got no {recipe.name} there")
    config = load_config(recipe)
    if config.shared.round.partition != "majority":
        raise ConfigError(
            f"{folder}: expected a run with shared.round.partition = majority, got "
            f"{config.shared.round.partition}, in which whoever is left goes on by itself"
        )
    return config


def _standstill(folder: Path) -> Fields:
    """What the island says of its standing still.

    Raises:
        StorageError: it doesn't stand still, or the file is damaged.
    """
    from lowcomm.exchanges.fields import Fields
    from lowcomm.recovery.mandates import STANDSTILL

    path = folder / STANDSTILL
    try:
        return Fields(STANDSTILL, json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        raise StorageError(
            f"{folder}: expected an island that stands still since most of those who may decide are away, "
            f"got no {STANDSTILL}: nothing is to be recovered here; or it doesn't run, then start it and "
            "wait until it says that they are away"
        ) from error
    except (OSError, ValueError, ProtocolError) as error:
        raise StorageError(f"{path}: expected what a running island writes, got {error}") from error


def _members(given: str | None, standstill: Fields) -> list[PeerId]:
    from lowcomm.recovery.mandates import choose_members

    asked = [text.strip() for text in (given or "").split(",") if text.strip()]
    if given is not None and not asked:
        raise ConfigError("--members: expected names or peer ids of islands, got nothing")
    members, here = choose_members(asked, standstill), standstill.texts("here", 4_096)
    names = standstill.mapping("names")
    for peer in members:
        if peer not in here:
            away = "is away" if peer in standstill.texts("away", 4_096) else "isn't known here"
            known = ", ".join(str(names.get(p) or p) for p in here)
            raise ConfigError(
                f"--members: expected islands that are here ({known}), got {names.get(peer) or peer}, which "
                f"{away}"
            )
    return members


def _mandate(members: list[PeerId], standstill: Fields) -> Mandate:
    from lowcomm.exchanges.fields import Fields
    from lowcomm.ledger.mandate import parse_mandate

    body = {
        "run_id": standstill.text("run_id"),
        "positions": standstill.items("positions", 100_000),
        "members": [str(peer) for peer in members],
        "number": 1,
        "operator": "",
        "signature": "",
    }
    return parse_mandate(Fields("mandate", body))


def _numbered(folder: Path, mandate: Mandate, *, again: bool) -> Mandate:
    """One that takes the place of those before it, where that is asked for.

    Raises:
        StorageError: there is one for the same outer step.
        ConfigError: there is none to replace.
    """
    from lowcomm.recovery.mandates import read_mandates

    before = [
        given.mandate
        for given in read_mandates(folder)
        if set(given.mandate.positions.items()) & set(mandate.positions.items())
    ]
    newest = max(before, key=lambda known: known.number, default=None)
    if newest is None:
        if again:
            raise ConfigError(f"--replace: {folder}: expected a mandate for where it stands, got none")
        return mandate
    if again:
        return replace(mandate, number=newest.number + 1)
    if newest.members == mandate.members and newest.positions == mandate.positions:
        return replace(mandate, number=newest.number)
    raise StorageError(
        f"{folder}: {newest} is here for the same outer step, and a second one could give the run two "
        "histories; if it has come to nothing, --replace takes its place"
    )


def _signed(mandate: Mandate, operator: str, key: Path | None) -> Mandate:
    """With the operator's signature, where the run names one.

    Raises:
        ConfigError: the key is missing, or another one than the run's.
    """
    from lowcomm.exchanges.swarm.identity import MESSAGES, IdentityFile

    if not operator:
        if key is not None:
            raise ConfigError(f"--key {key}: the run names no operator (shared.round.operator); leave it out")
        return mandate
    if key is None or not key.is_file():
        got = f"no file {key}" if key else "no --key"
        raise ConfigError(f"--key: expected the key of the run's operator, {operator}, got {got}")
    file = IdentityFile(key)
    try:
        if file.identity.peer_id != operator:
            raise ConfigError(
                f"--key {key}: expected the key of the run's operator, {operator}, got that of "
                f"{file.identity.peer_id}"
            )
        signature = file.identity.sign(MESSAGES, mandate.content)
    finally:
        file.close()
    return replace(mandate, operator=PeerId(operator), signature=signature)
