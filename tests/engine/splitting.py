"""Split a GGUF file into parts as llama.cpp's own tool does: the first describes the model, each has some tensors.

Knows the layout of versions 2 and 3."""

import struct
from pathlib import Path
from typing import BinaryIO

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
ALIGNMENT = 32


def number(file: BinaryIO, code: str) -> int:
    (value,) = struct.unpack(code, file.read(struct.calcsize(code)))
    return int(value)


def skip_value(file: BinaryIO, kind: int) -> None:
    if kind == 8:
        file.seek(number(file, "<Q"), 1)
    elif kind == 9:
        item_kind, n_items = number(file, "<I"), number(file, "<Q")
        if item_kind == 8:
            for _ in range(n_items):
                file.seek(number(file, "<Q"), 1)
        else:
            file.seek(n_items * SIZES[item_kind], 1)
    else:
        file.seek(SIZES[kind], 1)


def key(name: str, kind: int, code: str, value: int) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + struct.pack(code, value)


def padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % ALIGNMENT)


def split(path: Path, folder: Path, name: str, count: int) -> list[Path]:
    """`path` must have the usual alignment, and its tensors in the order of their offsets."""
    content = path.read_bytes()
    with path.open("rb") as file:
        _, version, n_tensors, n_keys = struct.unpack("<4sIQQ", file.read(24))
        for _ in range(n_keys):
            file.seek(number(file, "<Q"), 1)
            skip_value(file, number(file, "<I"))
        described = content[24 : file.tell()]
        tensors: list[tuple[bytes, int]] = []  # what the table says before the offset, and the offset
        for _ in range(n_tensors):
            begin = file.tell()
            file.seek(number(file, "<Q"), 1)
            file.seek(number(file, "<I") * 8 + 4, 1)
            tensors.append((content[begin : file.tell()], number(file, "<Q")))
        data = content[len(padded(content[: file.tell()])) :]
    ends = [*(offset for _, offset in tensors[1:]), len(data)]
    whole = [(said, data[offset:end]) for (said, offset), end in zip(tensors, ends, strict=True)]
    files = []
    each = -(-len(whole) // count)
    for part in range(count):
        mine = whole[part * each : (part + 1) * each]
        keys = [
            key("split.no", 2, "<H", part),
            key("split.count", 2, "<H", count),
            key("split.tensors.count", 5, "<i", len(whole)),
        ]
        table, weights = b"", b""
        for said, bytes_ in mine:
            table += said + struct.pack("<Q", len(weights))
            weights += padded(bytes_)
        first = part == 0
        header = struct.pack("<4sIQQ", b"GGUF", version, len(mine), len(keys) + (n_keys if first else 0))
        files.append(folder / f"{name}-{part + 1:05}-of-{count:05}.gguf")
        files[-1].write_bytes(padded(header + (described if first else b"") + b"".join(keys) + table) + weights)
    return files
