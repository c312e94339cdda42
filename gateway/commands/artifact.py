"""`lockgate catalog push` and `pull`, `lockgate profile push` and `pull`: to and from a container registry.

Knows files and what to print; gateway/exchange/ does the work."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from catalog import Catalog, load_catalog, read_lock
from catalog.textfile import read_text
from catalog.writing import write_catalog
from gateway.catalogs import catalog_file, curated_catalog, open_catalog, profiles_file
from gateway.commands.catalog import print_difference, print_refused
from gateway.commands.exchange import IndexedPackages
from gateway.commands.running import AsJson, err, out, print_json, settings, shown
from gateway.errors import ImageRefused, SettingsError
from gateway.exchange.artifact import Kind
from gateway.exchange.filing import CATALOG, Filed, Wish, file_catalog, file_profile, lock_of
from gateway.exchange.trip import Pulled, name_of, pull, push
from gateway.exchange.trust import Trust, read_keys
from gateway.images.names import ImageName
from gateway.images.signing import SigningKey, load_key
from gateway.rulebook import open_rulebook
from gateway.settings import Settings

SHORT_DIGEST: Final = 19
"""Characters of a digest that people are shown."""

Reference = Annotated[str, typer.Argument(help="Where, as in ghcr.io/acme/catalog:1; without a tag it is latest.")]
SignKey = Annotated[
    Path | None, typer.Option("--sign-key", help="Sign it with this private key (ECDSA P-256, PEM, may be encrypted).")
]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", help="The key's passphrase is the first line of this file.")
]
KeyFiles = Annotated[
    list[Path] | None, typer.Option("--key", help="Take it only if this public key (PEM) signed it; may be repeated.")
]
Unsigned = Annotated[
    bool, typer.Option("--unsigned", help="Take it although nobody known here has to sign it. A publisher still must.")
]
Replace = Annotated[bool, typer.Option("--replace", help="Overwrite what was changed here; a backup keeps it.")]
Older = Annotated[bool, typer.Option("--older", help="Take it although it was pushed before what is here.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")]


def push_catalog(
    reference: Reference,
    file: Annotated[Path | None, typer.Argument(help="A catalogue file; default: the one in use.")] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", help="Push only this profile and the entries it names.")
    ] = None,
    sign_key: SignKey = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Push a catalogue to a container registry, with your Docker login, so that others can pull it."""
    path = file or catalog_file(settings())
    text = read_text(path) if profile is None else only_profile(load_catalog(path), profile)
    send("catalog", reference, text, path.stem if profile is None else profile, sign_key, passphrase_file, as_json)


def only_profile(catalog: Catalog, name: str) -> str:
    """A catalogue file of one profile, its entries, and the publishers.

    Raises:
        NotInCatalog: there is no such profile.
    """
    profile = catalog.profile(name)
    entries = [catalog.entry(id) for id in profile.entries]
    return write_catalog(entries, [profile], catalog.publishers.values())


def send(
    kind: Kind,
    reference: str,
    text: str,
    title: str,
    sign_key: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
) -> None:
    """Push it, and say what came of it."""
    key = _signing_key(sign_key, passphrase_file)
    pushed = push(kind, name_of(reference), text, title, key)
    if as_json:
        found = {
            "reference": pushed.tagged,
            "digest": pushed.digest,
            "pinned": pushed.pinned,
            "signed": key is not None,
        }
        print_json(found)
        return
    typer.echo(f"{pushed.tagged}: pushed as {pushed.digest}")
    if key is None:
        err.print("It is not signed; others have to pull it with --unsigned. To sign it: --sign-key FILE")


def _signing_key(file: Path | None, passphrase_file: Path | None) -> SigningKey | None:
    if file is None:
        return None

    def passphrase() -> str:
        if passphrase_file is not None:
            return read_text(passphrase_file).partition("\n")[0]
        return str(typer.prompt(f"Passphrase of {file}", hide_input=True, err=True))

    return load_key(file, passphrase)


def pull_catalog(
    reference: Annotated[
        str | None, typer.Argument(help="What to pull, by tag or digest; default: where it was pulled from last.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The catalogue file; default: LOCKGATE_CATALOG.")
    ] = None,
    key: KeyFiles = None,
    unsigned: Unsigned = False,
    replace: Replace = False,
    older: Older = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Pull a catalogue from a container registry: verified, checked, compared, and then written with a backup."""
    wanted = settings()
    file = target(wanted, output)
    asked = reference or _last(file, CATALOG)
    pulled = fetch("catalog", asked, wanted, key, unsigned=unsigned)
    filed = file_catalog(file, asked, pulled, Wish(replace, older, dry_run))
    report("catalog", pulled, filed, dry_run=dry_run, as_json=as_json)


def push_profile(
    name: Annotated[str, typer.Argument(help="The name of a profile.")],
    reference: Reference,
    sign_key: SignKey = None,
    passphrase_file: PassphraseFile = None,
    as_json: AsJson = False,
) -> None:
    """Push a profile, with the entries it names, to a container registry. Of secrets only the names are in it."""
    text = only_profile(open_catalog(settings()), name)
    send("profile", reference, text, name, sign_key, passphrase_file, as_json)


def pull_profile(
    reference: Annotated[str, typer.Argument(help="What to pull, by tag or digest.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The catalogue file to add to; default: LOCKGATE_CATALOG.")
    ] = None,
    key: KeyFiles = None,
    unsigned: Unsigned = False,
    replace: Replace = False,
    older: Older = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Pull a profile and its entries into a catalogue: verified, checked and compared; the file is written anew."""
    wanted = settings()
    file = target(wanted, output)
    pulled = fetch("profile", reference, wanted, key, unsigned=unsigned)
    own = profiles_file(wanted)
    if file == wanted.catalog and file.exists() and own.exists():
        curated, known = curated_catalog(wanted).profiles, open_catalog(wanted).profiles
        for name in pulled.catalog.profiles:
            if name not in curated and name in known:
                raise SettingsError(f"there is a profile {name} of your own in {own}; rename or remove that one")
    filed = file_profile(file, reference, pulled, Wish(replace, older, dry_run))
    report("profile", pulled, filed, dry_run=dry_run, as_json=as_json)


def target(wanted: Settings, output: Path | None) -> Path:
    """Raises SettingsError if no file of one's own is named: the shipped catalogue is nobody's to change."""
    file = output or wanted.catalog
    if file is None:
        raise SettingsError("name the catalogue file to write: -o FILE, or LOCKGATE_CATALOG=FILE")
    return file


def _last(file: Path, what: str) -> str:
    source = read_lock(lock_of(file)).sources.get(what)
    if source is None:
        raise SettingsError(f"{file} was not pulled from anywhere; name a reference")
    return source.reference


def fetch(kind: Kind, reference: str, wanted: Settings, keys: list[Path] | None, *, unsigned: bool) -> Pulled:
    """What the reference stands for, if it may be taken."""
    name = name_of(reference)
    rulebook = open_rulebook(wanted, _in_use(wanted))
    if why := rulebook.image_refusal(name):
        raise ImageRefused(f"{name.tagged} is refused: {why}")
    trust = Trust(tuple(rulebook.publishers.values()), read_keys(keys or []), unsigned)
    pulled = pull(kind, name, trust, IndexedPackages())
    print_refused(open_rulebook(wanted, pulled.catalog).refused(pulled.catalog))
    return pulled


def _in_use(wanted: Settings) -> Catalog:
    """The catalogue in use; an empty one where its file is still to be pulled."""
    if wanted.catalog is not None and not wanted.catalog.exists():
        return Catalog(wanted.catalog, {}, {})
    return open_catalog(wanted)


def report(kind: Kind, pulled: Pulled, filed: Filed, *, dry_run: bool, as_json: bool) -> None:
    """Say who signed it, what changed, and where it is."""
    before = filed.before.digest if filed.before is not None else None
    if as_json:
        found: dict[str, Any] = {"file": str(filed.file), "pinned": pulled.name.pinned, "signer": pulled.signer}
        found |= {"before": before, "written": filed.written, "backup": str(filed.backup) if filed.backup else None}
        print_json({**found, "notes": list(pulled.notes), "difference": asdict(filed.difference)})
        return
    for note in pulled.notes:
        err.print(shown(note))
    if pulled.signer is None:
        err.print(f"{pulled.name.tagged} is NOT SIGNED by anybody known here, and was taken because of --unsigned.")
    else:
        err.print(f"Signed by {pulled.signer}")
    if before is not None and before != pulled.name.digest:
        out.print(f"{before[:SHORT_DIGEST]} -> {str(pulled.name.digest)[:SHORT_DIGEST]}")
    print_difference(filed.difference)
    if dry_run:
        typer.echo(f"{filed.file}: nothing was written")
    elif not filed.written:
        typer.echo(f"{filed.file}: is up to date")
    else:
        kept = f" (before: {filed.backup})" if filed.backup is not None else ""
        typer.echo(f"{filed.file}: written from {_short(pulled.name)}{kept}")


def _short(name: ImageName) -> str:
    return f"{name.full}@{str(name.digest)[:SHORT_DIGEST]}"
