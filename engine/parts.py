"""A model split over several GGUF files, NAME-00001-of-00003.gguf and so on: its files, their order, their unity.

Knows what the headers of the files say; not where models are kept, nor how they are run."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from engine.errors import BadModelFile
from engine.gguf import MAX_TENSORS, GGUFHeader, read_header

MAX_PARTS: Final = 512  # the largest public models have fewer than 200
PART_NAME: Final = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE | re.DOTALL)


def files_of(path: Path) -> list[Path]:
    """The files of the model that `path` is, or is a part of.

    Raises: BadModelFile if it is a part and the others do not lie beside it under their names.
    """
    split = read_header(path).split
    if split is None:
        return [path]
    named = PART_NAME.fullmatch(path.name)
    if named is None or int(named["count"]) != split.count:
        raise BadModelFile(
            f"{path.name} is part {split.number + 1} of a model split into {split.count}; "
            f"keep the parts in one folder, named NAME-00001-of-{split.count:05}.gguf and so on"
        )
    if split.count > MAX_PARTS:
        raise BadModelFile(f"{path.name} belongs to a model of {split.count} parts; at most {MAX_PARTS} are accepted")
    files = [
        path.with_name(f"{named['name']}-{number:05}-of-{named['count']}{path.suffix}")
        for number in range(1, split.count + 1)
    ]
    for file in files:
        if not file.is_file():
            raise BadModelFile(f"{file.name} is missing beside {path.name}: all {split.count} parts are needed")
    return files


def in_order(headers: Sequence[GGUFHeader]) -> list[int]:
    """The positions of the parts among `headers`, the first part first.

    Raises: BadModelFile if they are not all parts of one model, each once.
    """
    if len(headers) == 1 and headers[0].split is None:
        return [0]
    if len(headers) > MAX_PARTS:
        raise BadModelFile(f"the model has {len(headers)} parts; at most {MAX_PARTS} are accepted")
    found: dict[int, int] = {}
    names: set[str] = set()
    for position, header in enumerate(headers):
        split = header.split
        if split is None:
            raise BadModelFile(f"the model has {len(headers)} weights files, and one is not part of a split model")
        if split.count != len(headers):
            raise BadModelFile(f"part {split.number + 1} of {split.count} is there, among {len(headers)} weights files")
        if split.number in found:
            raise BadModelFile(f"part {split.number + 1} of {split.count} is there twice, and another is missing")
        found[split.number] = position
        if doubled := names & header.tensor_names:
            raise BadModelFile(f"the tensor {min(doubled)!r} is in two parts: one of them belongs to another model")
        names |= header.tensor_names
    order = [found[number] for number in sorted(found)]
    _check_first(headers[order[0]], [headers[position] for position in order[1:]], len(names))
    return order


def _check_first(first: GGUFHeader, others: Sequence[GGUFHeader], n_tensors: int) -> None:
    """The first part describes the model, so the others must agree with it."""
    if n_tensors > MAX_TENSORS:
        raise BadModelFile(f"the parts have {n_tensors} tensors; at most {MAX_TENSORS} are accepted")
    promised = first.split.n_tensors if first.split else 0
    if n_tensors != promised:
        raise BadModelFile(f"the parts have {n_tensors} tensors, not {promised}: one belongs to another model")
    for header in others:
        if header.split and header.split.n_tensors != promised:
            raise BadModelFile(f"part {header.split.number + 1} belongs to a model of {header.split.n_tensors} tensors")
        if header.architecture and header.architecture != first.architecture:
            raise BadModelFile(f"the parts are of two architectures, {first.architecture} and {header.architecture}")


def joined(headers: Sequence[GGUFHeader]) -> GGUFHeader:
    """The header of the whole model; `headers` are in order."""
    return replace(
        headers[0],
        n_parameters=sum(header.n_parameters for header in headers),
        n_tensors=sum(header.n_tensors for header in headers),
        metadata={key: value for key, value in headers[0].metadata.items() if not key.startswith("split.")},
    )
