"""What an image consists of, read from the records that installers leave in it, as a CycloneDX 1.5 document.

Knows dist-info, package.json and dpkg's status file; not how they got there. The same image gives the same document."""

from __future__ import annotations

import json
import uuid
from email.parser import HeaderParser
from typing import Any, Final, NamedTuple
from urllib.parse import quote

NAMESPACE: Final = uuid.UUID("6f1f8d4e-8f0e-5d0f-9a55-3f6f2a1c7f10")
"""For serial numbers: names of images below it."""
DPKG_STATUS: Final = "var/lib/dpkg/status"


class Component(NamedTuple):
    """One installed package."""

    ecosystem: str
    name: str
    version: str
    license: str = ""

    @property
    def purl(self) -> str:
        """Its package URL (the purl specification): scope and name are path segments."""
        name = self.name if self.ecosystem != "deb" else f"debian/{self.name}"
        if self.ecosystem == "pypi":
            name = name.lower().replace("_", "-")
        return f"pkg:{self.ecosystem}/{quote(name, safe='/')}@{quote(self.version, safe='.-~')}"


def is_record(path: str) -> bool:
    """Whether a file says what is installed."""
    if path == DPKG_STATUS:
        return True
    if path.endswith(".dist-info/METADATA"):
        return True
    folder, _, name = path.rpartition("/")
    return name == "package.json" and _is_package_folder(folder)


def _is_package_folder(folder: str) -> bool:
    """Folders right below node_modules, or below a scope in it: others hold fixtures of packages."""
    above, _, last = folder.rpartition("/")
    if above.rpartition("/")[2].startswith("@"):
        above = above.rpartition("/")[0]
    return bool(last) and (above == "node_modules" or above.endswith("/node_modules"))


def components(path: str, content: bytes) -> list[Component]:
    """The packages that one record names; none where it is damaged."""
    text = content.decode("utf-8", "replace")
    if path == DPKG_STATUS:
        return _debian(text)
    if path.endswith("METADATA"):
        fields = HeaderParser().parsestr(text)
        license = fields.get("License-Expression") or fields.get("License") or ""
        return _checked("pypi", fields.get("Name"), fields.get("Version"), license)
    try:
        package = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(package, dict):
        return []
    stated = package.get("license")
    return _checked("npm", package.get("name"), package.get("version"), stated if isinstance(stated, str) else "")


def _debian(text: str) -> list[Component]:
    found = []
    for paragraph in text.split("\n\n"):
        fields = HeaderParser().parsestr(paragraph)
        if str(fields.get("Status", "")).endswith(" installed"):
            found += _checked("deb", fields.get("Package"), fields.get("Version"), "")
    return found


def _checked(ecosystem: str, name: object, version: object, license: str) -> list[Component]:
    if not isinstance(name, str) or not isinstance(version, str) or not name or not version:
        return []
    first_line = license.strip().partition("\n")[0]
    return [Component(ecosystem, name.strip(), version.strip(), first_line[:100])]


def document(image: str, id: str, found: set[Component]) -> bytes:
    """The document, in a fixed order and without the time."""
    listed: list[dict[str, Any]] = []
    for one in sorted(found):
        item: dict[str, Any] = {
            "type": "library", "name": one.name, "version": one.version, "purl": one.purl, "bom-ref": one.purl,
        }  # fmt: skip
        if one.license:
            item["licenses"] = [{"license": {"name": one.license}}]
        listed.append(item)
    text = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, id)}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container", "name": image, "version": id, "bom-ref": id,
                "hashes": [{"alg": "SHA-256", "content": id.removeprefix("sha256:")}],
            }
        },
        "components": listed,
    }  # fmt: skip
    return json.dumps(text, indent=1).encode() + b"\n"
