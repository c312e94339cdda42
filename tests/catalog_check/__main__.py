"""`python -m tests.catalog_check`: build, start and list every entry that has a package, and write the table.

Knows what to run in which order and where the results go.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

import anyio

from catalog import CatalogError, find_shipped_catalog, load_catalog
from tests.catalog_check import record
from tests.catalog_check.trial import trial

FAILING: Final = Path(__file__).with_name("failing.yaml")
DOCS: Final = Path(__file__).resolve().parents[2] / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.catalog_check", description=__doc__)
    parser.add_argument("ids", nargs="*", help="entries to check; default: every one with a package")
    parser.add_argument("--catalog", type=Path, help="another catalog file")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of servers.json and servers.md")
    parser.add_argument("--keep", action="store_true", help="keep the images")
    parser.add_argument("--new", action="store_true", help="only what has no good result at this version yet")
    wanted = parser.parse_args()
    try:
        catalog = load_catalog(wanted.catalog or find_shipped_catalog())
        candidates = dict(catalog.entries)
        if wanted.catalog is None:
            candidates |= {f"{id} (failing)": entry for id, entry in load_catalog(FAILING).entries.items()}
        entries = [catalog.entry(id) for id in wanted.ids] or list(candidates.values())
    except CatalogError as exc:
        print(exc, file=sys.stderr)
        return 1
    print(f"{catalog.path}: {len(catalog.entries)} entries, no problems", flush=True)
    results = record.read(wanted.out / "servers.json")
    failed = 0
    for entry in entries:
        package = entry.package
        if package is None:
            continue
        known = results.get(entry.id)
        if wanted.new and known is not None and known.version == package.version and not known.reason:
            continue
        print(f"{entry.id}: {package.ecosystem} {package.name} {package.version} ...", end=" ", flush=True)
        with tempfile.TemporaryDirectory(prefix="lockgate-check-") as state:
            result = anyio.run(trial, entry, package, Path(state), wanted.keep)
        print(result.reason or f"{len(result.tools)} tools, MCP {result.revision}", flush=True)
        failed += bool(result.reason)
        results[entry.id] = result
        record.write(wanted.out / "servers.json", results)
    tried = {entry.id for entry in candidates.values() if entry.package is not None}
    listed = {id: result for id, result in results.items() if id in tried}
    record.write(wanted.out / "servers.json", listed)
    (wanted.out / "servers.md").write_text(record.table(listed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
