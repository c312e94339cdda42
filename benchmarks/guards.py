"""What content guards add to a payload, beside the floor of decoding its JSON, in the same run.

    make bench-guards

Prints CPU time for each kind of payload: a small result, and 1 MB of English, of program text, of other scripts, of
escaped JSON and of text full of findings; with the defaults, and with every guard replacing what it finds."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from policies.guards import DEFAULTS, GUARDS, Guards, scanner

MB = 1_000_000
ROUNDS = 7
ROOT = Path(__file__).parents[1]
SCRIPTS = "Ελληνικά кириллица 中文字符 日本語テキスト العربية हिन्दी “quotes” – dash 🙂 "
FINDINGS = "mail a.b@firm.de, card 4111 1111 1111 1111, \x1b[1mbold\x1b[0m, user\u202ename, password: Tr0ub4dor7x9\n"


def payloads() -> dict[str, bytes]:
    documents = "".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md")))
    program = "".join(path.read_text() for path in sorted((ROOT / "gateway").rglob("*.py")))
    small = {
        "content": [{"type": "text", "text": '{"timezone": "Asia/Tokyo", "datetime": "2026-11-25T10:00:00+09:00"}'}]
    }
    whole = {
        "English": documents.encode().decode("ascii", "ignore"),
        "program": program,
        "other scripts": SCRIPTS,
        "findings": FINDINGS,
    }
    made = {"small": json.dumps(small).encode()}
    for name, text in whole.items():
        bytes_each = len(text.encode())
        full = (text * (MB // bytes_each + 1))[: int(len(text) * MB / bytes_each)]
        made[f"1 MB, {name}"] = _result(full, ascii=False)
    made["1 MB, escaped"] = _result((SCRIPTS * 3000)[: MB // 6], ascii=True)
    return made


def _result(text: str, *, ascii: bool) -> bytes:
    return json.dumps({"content": [{"type": "text", "text": text}]}, ensure_ascii=ascii).encode()


def measured(work: Callable[[], object], times: int) -> float:
    """Median CPU seconds of one."""
    found = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(times):
            work()
        found.append((time.process_time() - began) / times)
    return statistics.median(found)


def main() -> None:
    defaults = scanner(Guards.of(DEFAULTS["results"]))
    every = scanner(Guards.of(dict.fromkeys(GUARDS, "redact")))
    decode = msgspec.json.Decoder().decode
    print(f"{'payload':24} {'bytes':>9} {'floor: decode':>14} {'defaults':>12} {'every guard':>12}")
    worst = 0.0
    for name, payload in payloads().items():
        times = 20_000 if len(payload) < 10_000 else 3
        one, two, three = (
            measured(lambda: decode(payload), times),  # noqa: B023  # called at once
            measured(lambda: defaults.scan(payload), times),  # noqa: B023
            measured(lambda: every.scan(payload), times),  # noqa: B023
        )
        unit, factor = ("us", 1e6) if len(payload) < 10_000 else ("ms", 1e3)
        figures = " ".join(f"{seconds * factor:9.2f} {unit}" for seconds in (one, two, three))
        print(f"{name:24} {len(payload):9}   {figures}")
        if len(payload) > 10_000:
            worst = max(worst, two)
    print(f"guards: worst_1mb_ms={worst * 1e3:.1f}")


if __name__ == "__main__":
    main()
