"""What a profile says of entries, held against the entries: that servers, tools, settings and secrets exist and fit.

Does not know files. Works on located nodes, so that each problem has its line, also where the profile is wrong in other
ways.
"""

from collections.abc import Collection, Iterator
from collections.abc import Mapping as Members

from catalog.entry import Entry
from catalog.located import Mapping, Node, Scalar, Sequence, plain
from catalog.spelling import did_you_mean, quoted, skeleton

Found = Iterator[tuple[int, str]]


def misfits(profile: Node, entries: Members[str, Entry], ids: Collection[str]) -> Found:
    """Yield line and message of everything that does not fit.

    Args:
        profile: the profile's node.
        entries: the valid entries; nothing is said of what concerns others.
        ids: the ids of all entries, also of broken ones.
    """
    details = _members(profile, "details")
    owners = {name: _owner(detail) or name for name, (_, detail) in details.items()}
    yield from _servers(profile, details, ids)
    for name, (line, detail) in details.items():
        owner = _owner(detail)
        if owner is not None and owner not in ids:
            at = _members(detail)["server"][0]
            yield at, f"there is no entry {quoted(owner)}{did_you_mean(owner, ids)}"
        if owner is not None and owner != name and name in ids:
            yield line, f"gives {owner} the name {name}, which is another entry's id; choose another name"
        if (entry := entries.get(owners[name])) is not None:
            yield from _detail(detail, entry)
    for name, (_, chosen) in _members(profile, "tools").items():
        entry = entries.get(owners.get(name, name))
        if entry is not None and isinstance(chosen, Sequence):
            yield from _tools([(item.line, item.value) for item in chosen.items if isinstance(item, Scalar)], entry)


def _servers(profile: Node, details: Members[str, tuple[int, Node]], ids: Collection[str]) -> Found:
    spellings: dict[str, str] = {}
    for line, name in _texts(profile, "servers"):
        if name not in ids and (name not in details or _owner(details[name][1]) is None):
            known = [*ids, *details]
            yield line, f"there is no entry {quoted(name)}{did_you_mean(name, known)}"
        other = spellings.setdefault(skeleton(name), name)
        if other != name and not {name, other} <= set(ids):
            yield line, f"{quoted(name)} looks like {quoted(other)}; choose another name"


def _detail(detail: Node, entry: Entry) -> Found:
    settings = {setting.name: setting for setting in entry.config}
    for name, (line, value) in _members(detail, "settings").items():
        if name not in settings:
            yield line, f"{entry.id} has no setting {quoted(name)}{did_you_mean(name, settings)}"
        elif wrong := settings[name].wrong(plain(value)):
            yield line, f"the setting {name} {wrong}"
    secrets = [secret.name for secret in entry.secrets]
    for name, (line, _) in _members(detail, "secrets").items():
        if name not in secrets:
            yield line, f"{entry.id} asks for no secret {quoted(name)}{did_you_mean(name, secrets)}"
    for key in ("rename", "descriptions"):
        yield from _tools([(line, name) for name, (line, _) in _members(detail, key).items()], entry)


def _tools(named: list[tuple[int, object]], entry: Entry) -> Found:
    for line, tool in named:
        if isinstance(tool, str) and entry.tools and tool not in entry.tools:
            hint = did_you_mean(tool, entry.tools)
            yield line, f"{entry.id} lists no tool {quoted(tool)}{hint}; correct it here or there"


def _owner(detail: Node) -> str | None:
    """The entry that a detail names, if it names one."""
    _, node = _members(detail).get("server", (0, None))
    return node.value if isinstance(node, Scalar) and isinstance(node.value, str) else None


def _members(node: Node, key: str | None = None) -> Members[str, tuple[int, Node]]:
    """The members of a mapping, or of the mapping below one of its keys; none if there is no such mapping."""
    if not isinstance(node, Mapping):
        return {}
    if key is None:
        return node.members
    return _members(node.members[key][1]) if key in node.members else {}


def _texts(node: Node, key: str) -> Found:
    """Line and text of the texts in the list below a key, if there is one."""
    _, value = _members(node).get(key, (0, None))
    if isinstance(value, Sequence):
        for item in value.items:
            if isinstance(item, Scalar) and isinstance(item.value, str):
                yield item.line, item.value
