"""How much memory a model needs while it is loaded: an estimate from what its file says of itself.

Knows nothing of what else the machine does; `available_bytes` says what there is for models at most."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from engine.gguf import Scalar
from engine.shelf import SHELF_BYTES

OVERHEAD_BYTES: Final = 160 << 20  # the worker's Python, libraries and small buffers, measured
LOGIT_BYTES: Final = 4
CELL_VALUE_BYTES: Final = 2  # keys and values are 16-bit numbers
SHARE: Final = 0.75  # of the machine's memory, where nobody says otherwise
_LARGEST_LAYERS: Final = 64  # assumed of a file that does not say
_LARGEST_WIDTH: Final = 4_096


def cache_bytes(metadata: Mapping[str, Scalar], n_cells: int) -> int:
    """Keys and values of `n_cells` tokens."""
    architecture = str(metadata.get("general.architecture", ""))

    def number(key: str, default: int) -> int:
        try:
            return int(metadata[f"{architecture}.{key}"])
        except (KeyError, ValueError):
            return default

    n_layers = number("block_count", _LARGEST_LAYERS)
    width = number("embedding_length", _LARGEST_WIDTH)
    n_heads = max(number("attention.head_count", 1), 1)
    n_kv_heads = number("attention.head_count_kv", n_heads)
    key = number("attention.key_length", width // n_heads)
    value = number("attention.value_length", width // n_heads)
    return n_layers * n_kv_heads * (key + value) * CELL_VALUE_BYTES * n_cells


def needed_bytes(metadata: Mapping[str, Scalar], size_bytes: int, n_cells: int, n_outputs: int) -> int:
    """Weights, cache, what is kept beside it, `n_outputs` rows of logits and the process itself."""
    n_vocab = 160_000  # the token list itself is not kept; most are smaller
    cache = cache_bytes(metadata, n_cells)
    return size_bytes + cache + min(cache, SHELF_BYTES) + n_outputs * n_vocab * LOGIT_BYTES + OVERHEAD_BYTES


def available_bytes() -> int:
    """What models may use together on this machine: a share of its memory, or of what its control group allows."""
    total = _meminfo("MemTotal")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return int(total * SHARE)


def _meminfo(field: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    return 4 << 30
