"""A language model that may be fetched and run: what it is, what it needs, and where its weights come from.

Does not know registries or files; whoever fetches the weights checks them against the digest.
"""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from catalog import reference
from catalog.parts import Line, Number, Part, TruthValue, WholeNumber, refuse
from catalog.spelling import quoted

NAME = r"[a-z0-9]+(?:(?:[._/]|__|-+)[a-z0-9]+)*:[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_HOST = r"[a-z0-9][a-z0-9.-]*(?::[0-9]{1,5})?"
REPOSITORY = _HOST + r"(?:/[A-Za-z0-9]+(?:(?:[._]|__|-+)[A-Za-z0-9]+)*)+"
_SHA256 = r"sha256:[0-9a-f]{64}"


def _matching(pattern: str, expected: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"{quoted(text)} {expected}")
        return text

    return AfterValidator(check)


ModelName = Annotated[
    str, StringConstraints(max_length=255), _matching(NAME, "is no model's name; write name:tag, as qwen2.5-coder:0.5b")
]
Digest = Annotated[str, _matching(_SHA256, "is no digest; write sha256: and 64 hexadecimal digits")]
Size = Annotated[WholeNumber, Field(ge=1, le=1 << 44)]


def _package_name(text: str) -> str:
    reference.check_package_name("pypi", text)
    return text


def _package_version(text: str) -> str:
    reference.check_package_version("pypi", text)
    return text


class WeightPart(Part):
    """A PyPI package that carries a part of the weights as its one data file; it is never installed."""

    name: Annotated[str, AfterValidator(_package_name)]
    version: Annotated[str, AfterValidator(_package_version)]
    size_bytes: Size | None = None
    digest: Digest | None = None


class WeightSource(Part):
    """One place the weights can be had from: a registry, or packages whose data files are joined in order."""

    registry: Annotated[str, _matching(f"^{REPOSITORY}$", "names no repository; write host/path")] | None = None
    """A repository that serves the weights as a blob: hf.co/OWNER/NAME, or one of any OCI registry."""
    packages: Annotated[tuple[WeightPart, ...], Field(min_length=1, max_length=256)] | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.registry is None) == (self.packages is None):
            refuse(["a source has either registry, a repository, or packages, the parts of the weights"])
        return self


class Model(Part):
    """One language model: its weights by digest, their sources in the order they are tried, and how it is run."""

    name: ModelName
    title: Line
    digest: Digest
    """Of the GGUF file, whatever the source."""
    size_bytes: Size
    memory_mb: Annotated[WholeNumber, Field(ge=1, le=1 << 24)]
    """What it takes while loaded, with the context below."""
    license: Line
    parameters: Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?[MBT]$")]
    """How many: 135M, 0.5B."""
    context_length: Annotated[WholeNumber, Field(ge=1, le=1 << 24)]
    """Tokens it was trained to hold."""
    tools: TruthValue
    """Whether it was trained to call tools; others call them by a grammar alone."""
    sources: Annotated[tuple[WeightSource, ...], Field(min_length=1, max_length=16)]
    """Tried in this order."""
    context_tokens: Annotated[WholeNumber, Field(ge=512, le=1 << 24)] | None = None
    """Tokens of one request, in place of the setting's."""
    gpu_layers: Annotated[WholeNumber, Field(ge=-1, le=1024)] | None = None
    """Layers to put on a GPU, in place of the setting's; -1 is all."""
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    """For requests that name none."""
    top_p: Annotated[Number, Field(ge=0, le=1)] | None = None
    """For requests that name none."""
    preload: TruthValue = False
    """Load it when the gateway starts, if it is in the store, and keep it."""
