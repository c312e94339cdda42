"""The rules file in force, applied to a catalogue: which entries it refuses, and whose signatures images need.

Pure but for finding the file. Knows entries; starts and fetches nothing. Every way in which an entry could run must be
allowed: a package does not take the place of an image that is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from catalog import Catalog, Entry, Publisher, Rules, load_rules
from catalog.rules import host_fits, image_fits, package_fits
from gateway.images.names import ImageName, parse
from gateway.settings import Settings

FILE_NAME: Final = "rules.yaml"


class Rulebook:
    """The rules, with the publishers that count beside those of one catalogue. Never changes."""

    def __init__(
        self, file: Path | None = None, rules: Rules | None = None, publishers: Mapping[str, Publisher] | None = None
    ) -> None:
        """`publishers` are the catalogue's; one of the rules counts before one of the same images there."""
        self.file = file
        self.rules = rules or Rules()
        own = self.rules.publishers
        given = {name: one for name, one in (publishers or {}).items() if name not in own}
        self.publishers: Mapping[str, Publisher] = {**own, **given}

    def refusal(self, entry: Entry) -> str:
        """Why the entry must not run, by the first rule that says so; empty if it may."""
        return next(self._refusals(entry), "")

    def refused(self, catalog: Catalog) -> dict[str, str]:
        """The entries of a catalogue that must not run, and why."""
        found = ((id, self.refusal(entry)) for id, entry in catalog.entries.items())
        return {id: why for id, why in found if why}

    def image_refusal(self, name: ImageName) -> str:
        """Why an image, or a catalogue in a registry, must not be had; empty if it may."""
        return next(self._image_refusals(name.full), "")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rulebook):
            return NotImplemented
        return (self.file, self.rules, self.publishers) == (other.file, other.rules, other.publishers)

    __hash__ = None  # type: ignore[assignment]  # compared, never a key

    def read_again(self, settings: Settings, catalog: Catalog) -> Rulebook:
        """The rules as they are now. What was in force does not vanish with its file while the gateway runs.

        Raises:
            CatalogError: the file is missing or breaks rules.
        """
        file = self.file or rules_file(settings)
        return Rulebook(file, load_rules(file) if file is not None else None, catalog.publishers)

    # -- the rules ---------------------------------------------------------------------------

    def _refusals(self, entry: Entry) -> Iterator[str]:
        allow = self.rules.allow
        for block in self.rules.block:
            if block.entry == entry.entry_id:
                yield self._said("block", f"the entry {entry.entry_id} is blocked: {block.reason}")
        for repository in _repositories(entry):
            yield from self._image_refusals(repository)
        if entry.package is not None:
            yield from self._package_refusals(entry.package.ecosystem, entry.package.name)
        if entry.remote is not None:
            yield from self._remote_refusals((urlsplit(entry.remote.url).hostname or "").rstrip("."))
        runs_here = entry.image or entry.package or entry.per_call
        if runs_here and allow.networks is not None and entry.network not in allow.networks:
            yield self._said("allow.networks", f"servers with network: {entry.network} are not allowed")

    def _image_refusals(self, repository: str) -> Iterator[str]:
        allow = self.rules.allow
        for block in self.rules.block:
            if block.image is not None and image_fits(block.image, repository):
                yield self._said("block", f"{repository} is blocked: {block.reason}")
        if allow.registries is not None and not any(image_fits(one, repository) for one in allow.registries):
            yield self._said("allow.registries", f"nothing from {repository} is allowed")
        publisher = next((one for one in self.publishers.values() if one.publishes(repository)), None)
        if allow.publishers is not None and (publisher is None or publisher.name not in allow.publishers):
            yield self._said("allow.publishers", f"{repository} is of no publisher that is allowed")
        if publisher is None and any(image_fits(pattern, repository) for pattern in self.rules.signed):
            yield self._said("signed", f"{repository} must be signed, and no publisher of it is known")

    def _package_refusals(self, ecosystem: str, name: str) -> Iterator[str]:
        allow = self.rules.allow
        for block in self.rules.block:
            if block.package is not None and package_fits(block.package, ecosystem, name):
                yield self._said("block", f"the {ecosystem} package {name} is blocked: {block.reason}")
        if allow.packages is not None and not any(package_fits(one, ecosystem, name) for one in allow.packages):
            yield self._said("allow.packages", f"the {ecosystem} package {name} is not allowed")

    def _remote_refusals(self, host: str) -> Iterator[str]:
        allow = self.rules.allow
        for block in self.rules.block:
            if block.remote is not None and host_fits(block.remote, host):
                yield self._said("block", f"servers at {host} are blocked: {block.reason}")
        if allow.remotes is not None and not any(host_fits(one, host) for one in allow.remotes):
            yield self._said("allow.remotes", f"servers at {host} are not allowed")

    def _said(self, rule: str, what: str) -> str:
        return f"{what} (rule {rule} in {self.file})"


def rules_file(settings: Settings) -> Path | None:
    """Where the rules are: the file that is named, else rules.yaml in the state folder if it is there."""
    if settings.rules is not None:
        return settings.rules
    own = settings.state_dir / FILE_NAME
    return own if own.exists() else None


def open_rulebook(settings: Settings, catalog: Catalog) -> Rulebook:
    """The rules in force for this catalogue.

    Raises:
        CatalogError: the file is missing or breaks rules: then nothing is allowed, rather than everything.
    """
    return Rulebook().read_again(settings, catalog)


def _repositories(entry: Entry) -> list[str]:
    images = ([entry.image] if entry.image else []) + [tool.image for tool in entry.per_call]
    return list(dict.fromkeys(parse(image).full for image in images))
