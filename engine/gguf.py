"""The header of a GGUF file, read in Python with limits, before native code sees the file.

Knows nothing of stores or llama.cpp; it reads no weights."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from engine.errors import BadModelFile

# Limits: the largest public models stay well below each of them.
MAX_HEADER_BYTES: Final = 256 << 20
MAX_TENSORS: Final = 100_000
MAX_KEYS: Final = 10_000
MAX_KEY_BYTES: Final = 1_024
MAX_STRING_BYTES: Final = 1 << 20
MAX_ARRAY_ITEMS: Final = 4_000_000
MAX_DIMENSIONS: Final = 4
MAX_ELEMENTS: Final = 1 << 48

Scalar: TypeAlias = int | float | bool | str

_SCALARS: Final = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING: Final = 8
_ARRAY: Final = 9
_FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS",
    20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip  # `enum llama_ftype` in llama.h


@dataclass(frozen=True, slots=True)
class Split:
    """Which part of a model a file is: its number from 0, how many there are, and the tensors of all together."""

    number: int
    count: int
    n_tensors: int


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What a GGUF file says about itself; arrays (vocabulary, merges) are checked and skipped.

    Only the first part of a split model says what kind of model it is: `architecture` of the others is empty.
    """

    version: int
    architecture: str
    context_length: int
    quantization: str
    n_parameters: int
    n_tensors: int
    chat_template: str | None
    metadata: Mapping[str, Scalar]
    tensor_names: frozenset[str] = frozenset()
    split: Split | None = None


class _Reader:
    """Reads little-endian values from a file and counts what it has read."""

    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._left = min(size_bytes, MAX_HEADER_BYTES)
        self.position = 0

    def take(self, n: int, what: str) -> bytes:
        if n > self._left:
            raise BadModelFile(f"the GGUF header ends inside {what}, at byte {self.position}")
        data = self._file.read(n)
        if len(data) != n:
            raise BadModelFile(f"the file ends inside {what}, at byte {self.position}")
        self._left -= n
        self.position += n
        return data

    def skip(self, n: int, what: str) -> None:
        if n > self._left:
            raise BadModelFile(f"the GGUF header ends inside {what}, at byte {self.position}")
        self._file.seek(n, 1)
        self._left -= n
        self.position += n

    def number(self, code: str, what: str) -> int:
        value: int = struct.unpack(code, self.take(struct.calcsize(code), what))[0]
        return value

    def count(self, limit: int, what: str) -> int:
        value = self.number("<Q", what)
        if value > limit:
            raise BadModelFile(f"{what} is {value}; at most {limit} are accepted")
        return value

    def text(self, limit: int, what: str) -> str:
        length = self.count(limit, f"the length of {what}")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as exc:
            raise BadModelFile(f"{what} is not valid UTF-8") from exc


def read_header(path: Path) -> GGUFHeader:
    """Read and check the header of `path`.

    Raises: BadModelFile if it is not GGUF version 2 or 3, is cut short, lies about its tensors or passes a limit.
    """
    try:
        size_bytes = path.stat().st_size
        with path.open("rb", buffering=1 << 20) as file:
            return _parse(_Reader(file, size_bytes), size_bytes)
    except OSError as exc:
        raise BadModelFile(f"cannot read {path}: {exc.strerror or exc}") from exc


def _parse(reader: _Reader, size_bytes: int) -> GGUFHeader:
    if reader.take(4, "the magic number") != b"GGUF":
        raise BadModelFile("the file does not begin with GGUF: it is not a GGUF model")
    version = reader.number("<I", "the version")
    if version not in (2, 3):
        raise BadModelFile(f"GGUF version {version} is not supported; versions 2 and 3 (little-endian) are")
    n_tensors = reader.count(MAX_TENSORS, "the number of tensors")
    n_keys = reader.count(MAX_KEYS, "the number of metadata keys")
    metadata: dict[str, Scalar] = {}
    seen: set[str] = set()
    for index in range(n_keys):
        key = reader.text(MAX_KEY_BYTES, f"metadata key {index}")
        if key in seen:
            raise BadModelFile(f"the metadata key {key!r} occurs twice")
        seen.add(key)
        value = _value(reader, reader.number("<I", f"the type of {key}"), key)
        if value is not None:
            metadata[key] = value
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment > 1 << 16 or alignment & (alignment - 1):
        raise BadModelFile(f"general.alignment is {alignment!r}; a power of two from 8 to 65536 is expected")
    n_parameters, names = _tensors(reader, n_tensors, size_bytes, alignment)
    split = _split(metadata)
    architecture = metadata.get("general.architecture", "")
    if not isinstance(architecture, str) or not (architecture or (split and split.number)):
        raise BadModelFile("general.architecture is missing: the file does not say what kind of model it is")
    context_length = metadata.get(f"{architecture}.context_length", 0)
    file_type = metadata.get("general.file_type")
    template = metadata.get("tokenizer.chat_template")
    return GGUFHeader(
        version=version,
        architecture=architecture,
        context_length=context_length if isinstance(context_length, int) else 0,
        quantization=_FILE_TYPES.get(file_type, "unknown") if isinstance(file_type, int) else "unknown",
        n_parameters=n_parameters,
        n_tensors=n_tensors,
        chat_template=template if isinstance(template, str) else None,
        metadata=metadata,
        tensor_names=names,
        split=split,
    )


def _split(metadata: Mapping[str, Scalar]) -> Split | None:
    """What the file says of being a part."""
    number, count, n_tensors = (metadata.get(f"split.{key}") for key in ("no", "count", "tensors.count"))
    if count in (None, 0, 1):  # parts that were merged again say 0
        return None
    if type(number) is not int or type(count) is not int or type(n_tensors) is not int or not 0 <= number < count:
        raise BadModelFile(f"the file says it is part {number!r} of {count!r} of a split model: that cannot be")
    return Split(number, count, n_tensors)


def _value(reader: _Reader, kind: int, key: str) -> Scalar | None:
    """One metadata value; arrays are walked for their lengths and give None."""
    if code := _SCALARS.get(kind):
        scalar: Scalar = struct.unpack(code, reader.take(struct.calcsize(code), key))[0]
        return scalar
    if kind == _STRING:
        return reader.text(MAX_STRING_BYTES, key)
    if kind != _ARRAY:
        raise BadModelFile(f"{key} has the unknown type {kind}")
    item_kind = reader.number("<I", f"the item type of {key}")
    n_items = reader.count(MAX_ARRAY_ITEMS, f"the length of the array {key}")
    if code := _SCALARS.get(item_kind):
        reader.skip(n_items * struct.calcsize(code), key)
    elif item_kind == _STRING:
        for _ in range(n_items):
            reader.skip(reader.count(MAX_STRING_BYTES, f"the length of a string in {key}"), key)
    else:
        raise BadModelFile(f"{key} is an array of the unsupported type {item_kind}")
    return None


def _tensors(reader: _Reader, n_tensors: int, size_bytes: int, alignment: int) -> tuple[int, frozenset[str]]:
    """Check the tensor table; return the number of weights in all tensors, and their names."""
    names: set[str] = set()
    last_offset = 0
    total = 0
    for index in range(n_tensors):
        name = reader.text(MAX_KEY_BYTES, f"the name of tensor {index}")
        if name in names:
            raise BadModelFile(f"the tensor {name!r} occurs twice")
        names.add(name)
        n_dimensions = reader.number("<I", f"the shape of {name}")
        if not 1 <= n_dimensions <= MAX_DIMENSIONS:
            raise BadModelFile(f"the tensor {name!r} has {n_dimensions} dimensions; 1 to {MAX_DIMENSIONS} are accepted")
        n_elements = 1
        for _ in range(n_dimensions):
            n_elements *= reader.count(MAX_ELEMENTS, f"a dimension of {name}")
        if not 0 < n_elements <= MAX_ELEMENTS:
            raise BadModelFile(f"the tensor {name!r} has {n_elements} elements")
        total += n_elements
        reader.number("<I", f"the type of {name}")
        offset = reader.number("<Q", f"the offset of {name}")
        if offset % alignment:
            raise BadModelFile(f"the tensor {name!r} is not aligned to {alignment} bytes")
        last_offset = max(last_offset, offset)
    data_start = -(-reader.position // alignment) * alignment
    if n_tensors and data_start + last_offset >= size_bytes:
        raise BadModelFile(f"the file has {size_bytes} bytes but its tensors reach further: it is cut short")
    return total, frozenset(names)
