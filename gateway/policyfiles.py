"""The policy files of this machine, and the engine they make for a catalogue.

Knows folders and names; what policies mean is for the policies room.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from catalog import Catalog, Profile
from gateway.errors import PoliciesUnusable
from gateway.listings import Listing
from gateway.settings import Settings
from policies import NO_PROFILE, AllowList, CedarEngine, Known, PolicyError, RuleSets, read_sets

FOLDER: Final = "policies"
SUFFIX: Final = ".cedar"
ADMINISTRATION: Final = "administration"
"""The set that says who may administer the gateway; a file of one's own takes the place of the shipped one."""
MAX_FILE_BYTES: Final = 1_000_000
_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,47}")

Texts = dict[str, list[tuple[str, str]]]


def folders(settings: Settings) -> list[Path]:
    """Where policies lie: beside a catalogue of one's own, and in the state folder."""
    beside = [settings.catalog.parent / FOLDER] if settings.catalog is not None else []
    return list(dict.fromkeys([*beside, settings.state_dir / FOLDER]))


def paths(settings: Settings) -> list[Path]:
    """Every policy file and every folder that may hold some: what to watch."""
    found = []
    for folder in folders(settings):
        found += [folder, *sorted(folder.glob(f"*{SUFFIX}")), *sorted(folder.glob(f"*/*{SUFFIX}"))]
    return found


def read_texts(settings: Settings) -> Texts:
    """The shipped sets and those of this machine, by name: NAME.cedar, or every file of a folder NAME. Only who may
    administer is said by one's own set in place of the shipped one.

    Raises:
        PoliciesUnusable: a file cannot be read, or two places have a set of the same name.
    """
    texts: Texts = shipped()
    given = texts[ADMINISTRATION]
    problems = []
    for folder in folders(settings):
        own: Texts = {}
        for path, name in _files(folder):
            if _NAME.fullmatch(name) is None:
                problems.append(f"{path}: {name} is no name for a policy; use letters, digits, - and _")
                continue
            try:
                text = _text(path)
            except (OSError, ValueError) as exc:
                problems.append(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}")
            else:
                own.setdefault(name, []).append((str(path), text))
        for name, found in own.items():
            if name in texts and not (name == ADMINISTRATION and texts[name] is given):
                problems.append(f"{found[0][0]}: there is a policy {name} already; give this one another name")
            else:
                texts[name] = found
    if problems:
        raise PoliciesUnusable("\n".join(problems))
    return texts


def shipped() -> Texts:
    """The sets that come with Lockgate."""
    folder = files("policies") / "shipped"
    return {
        file.name.removesuffix(SUFFIX): [(f"shipped/{file.name}", file.read_text("utf-8"))]
        for file in folder.iterdir()
        if file.name.endswith(SUFFIX)
    }


def known(catalog: Catalog, listings: Mapping[str, Listing]) -> Known:
    """What policies may name, as far as servers have said what they offer."""
    tools: dict[str, Mapping[str, Mapping[str, Any]]] = {
        server: {tool.key: listing.facts(tool.key, ()).parameters for tool in listing.tools}
        for server, listing in listings.items()
    }
    return Known(list(catalog.profiles), list(catalog.entries), tools)


def rules_of(texts: Texts, catalog: Catalog, listings: Mapping[str, Listing]) -> RuleSets:
    """
    Raises:
        PoliciesUnusable: with every problem of every file, with its line.
    """
    try:
        return read_sets(texts, known(catalog, listings))
    except PolicyError as exc:
        raise PoliciesUnusable(str(exc)) from exc


def read_rules(settings: Settings, catalog: Catalog, listings: Mapping[str, Listing]) -> RuleSets:
    """
    Raises:
        PoliciesUnusable: with every problem of every file, with its line.
    """
    return rules_of(read_texts(settings), catalog, listings)


def engine(catalog: Catalog, rules: RuleSets) -> CedarEngine:
    """The engine in which each profile has the policies it names.

    Raises:
        PoliciesUnusable: a profile names a set that there is not.
    """
    names = sorted(rules.sets)
    if lost := [profile for profile in catalog.profiles.values() if profile.policy not in rules.sets]:
        raise PoliciesUnusable(
            "\n".join(
                f"profile {profile.name} has the policy {profile.policy}, which is in no file; "
                f"there are {', '.join(names)}"
                for profile in lost
            )
        )
    chosen = {profile.name: profile.policy for profile in catalog.profiles.values()}
    chosen[NO_PROFILE] = ADMINISTRATION
    return CedarEngine(selection(catalog), rules.sets, chosen)


def selection(catalog: Catalog) -> AllowList:
    """What each profile selects; nothing else is allowed, whatever its policies say."""
    return AllowList({name: _selected(profile) for name, profile in catalog.profiles.items()})


def _selected(profile: Profile) -> dict[str, frozenset[str] | None]:
    """What the profile takes of each entry, whatever it names it; under which name, the profile itself knows."""
    rules: dict[str, frozenset[str] | None] = {}
    for server in profile.servers:
        entry, tools = profile.entry_id(server), profile.tools.get(server)
        before = rules.get(entry, frozenset())
        rules[entry] = None if tools is None or before is None else before | frozenset(tools)
    return rules


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        yield path, path.stem
    for path in sorted(folder.glob(f"*/*{SUFFIX}")):
        yield path, path.parent.name


def read_text(path: Path) -> str:
    """
    Raises:
        PoliciesUnusable: it cannot be read.
    """
    try:
        return _text(path)
    except (OSError, ValueError) as exc:
        raise PoliciesUnusable(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc


def _text(path: Path) -> str:
    if not path.is_file():
        raise ValueError("not a file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
    return path.read_text("utf-8")
