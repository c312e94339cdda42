"""The models that can be pulled by name: those of the catalogue in use, and the shipped ones.

Knows both rooms' words for a model and turns one into the other."""

from __future__ import annotations

from collections.abc import Mapping

from catalog import Model, WeightPart, WeightSource, find_shipped_catalog, load_catalog
from engine import KnownModel, ModelStore
from engine.sources import PackageSource, Part, RegistrySource
from gateway.catalogs import CACHE_FOLDER, catalog_file
from gateway.settings import Settings


def listed_models(settings: Settings) -> Mapping[str, Model]:
    """All models by name, the shipped ones first; one of the catalogue in use counts before a shipped one of its name.

    Raises:
        CatalogError: a catalogue cannot be read or breaks rules.
    """
    cache = settings.cache_dir / CACHE_FOLDER
    shipped, file = find_shipped_catalog(), catalog_file(settings)
    found = dict(load_catalog(shipped, cache).models)
    if file != shipped:
        found |= load_catalog(file, cache).models
    return found


def open_store(settings: Settings, listed: Mapping[str, Model] | None = None) -> ModelStore:
    """The store of this user, that can pull what is listed; read from the catalogues if it is not given. Raises: as
    `listed_models`."""
    found = listed_models(settings) if listed is None else listed
    return ModelStore(settings.models_dir, {name: known_model(model) for name, model in found.items()})


def known_model(model: Model) -> KnownModel:
    return KnownModel(
        ref=model.name,
        title=model.title,
        sha256=model.digest.removeprefix("sha256:"),
        size_bytes=model.size_bytes,
        license=model.license,
        parameters=model.parameters,
        context_length=model.context_length,
        has_tools=model.tools,
        sources=tuple(map(_source, model.sources)),
    )


def _source(source: WeightSource) -> RegistrySource | PackageSource:
    if source.packages is not None:
        return PackageSource(tuple(map(_part, source.packages)))
    host, _, repository = str(source.registry).partition("/")
    return RegistrySource(host, repository)


def _part(part: WeightPart) -> Part:
    sha256 = part.digest.removeprefix("sha256:") if part.digest else None
    return Part(part.name, part.version, part.size_bytes, sha256)
