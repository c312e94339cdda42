"""Documents of other programs: what becomes of every member, and that nothing is lost in silence."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from catalog import Catalog, find_shipped_catalog, load_catalog, parse_catalog
from catalog.exports import export_clients, export_docker, export_docker_profile, export_registry
from catalog.imports import Ecosystem, NoPackages, Unreadable, import_text
from catalog.writing import write_catalog

DOCUMENTS = Path(__file__).parent / "documents"
NEWEST = {("npm", "latest-mcp"): "4.5.6", ("pypi", "unpinned-mcp"): "0.9"}
NAMES = ("docker.yaml", "profile.yaml", "registry.json", "clients.json", "vscode.json")


class Index(NoPackages):
    """Knows two packages."""

    def newest(self, ecosystem: Ecosystem, name: str) -> str | None:
        return NEWEST.get((ecosystem, name))

    def program(self, ecosystem: Ecosystem, name: str, version: str) -> str | None:
        return "one" if name == "@team/one-mcp" else None


@pytest.fixture(scope="module")
def shipped() -> Catalog:
    return load_catalog(find_shipped_catalog())


@pytest.mark.parametrize("name", NAMES)
def test_a_document_with_every_member_becomes_the_expected_entries(name: str, tmp_path: Path) -> None:
    """The expected files were read line by line against the format's description."""
    found = import_text((DOCUMENTS / name).read_text(), packages=Index())
    stem = name.partition(".")[0]
    written = write_catalog(found.entries.values(), found.profiles.values())
    assert written == (DOCUMENTS / f"{stem}.expected.yaml").read_text()
    assert "".join(f"{note}\n" for note in found.notes) == (DOCUMENTS / f"{stem}.notes.txt").read_text()
    file = tmp_path / "catalog.yaml"
    file.write_text(written)
    loaded = load_catalog(file)
    assert dict(loaded.entries) == found.entries
    assert dict(loaded.profiles) == found.profiles


@pytest.mark.parametrize("name", NAMES)
def test_every_server_is_either_an_entry_or_left_out_with_a_reason(name: str) -> None:
    text = (DOCUMENTS / name).read_text()
    root = yaml.safe_load(text)
    servers = root.get("registry") or root.get("mcpServers") or root["servers"]
    assert len(servers) >= 20
    found = import_text(text, packages=Index())
    assert len(found.entries) + sum(note.refused for note in found.notes) == len(servers)


def test_values_that_may_be_secrets_are_nowhere_in_what_comes_out() -> None:
    found = import_text((DOCUMENTS / "clients.json").read_text(), packages=Index())
    all_of_it = write_catalog(found.entries.values()) + "".join(map(str, found.notes))
    for secret in ("sk-not-a-real-one", "ghp_x", "Bearer abc"):
        assert secret not in all_of_it


def test_a_docker_catalogue_of_version_2_is_read_too() -> None:
    text = (DOCUMENTS / "docker.yaml").read_text()
    older = import_text(text.replace("version: 3\n", "version: 2\n"), packages=Index())
    assert older.entries == import_text(text, packages=Index()).entries


def test_one_server_json_is_read_as_well_as_a_page_of_them() -> None:
    page = json.loads((DOCUMENTS / "registry.json").read_text())
    one = import_text(json.dumps(page["servers"][0]["server"]))
    assert list(one.entries) == ["npm-one"]


def test_client_files_with_comments_are_read() -> None:
    found = import_text('{\n  # of the team\n  "mcpServers": {"a": {"url": "https://a.example.com/mcp"}}\n}')
    assert list(found.entries) == ["a"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is a list or a single value"),
        ("[1]", "is a list or a single value"),
        ("{}", "is none of"),
        ("a: b: c", "is neither JSON nor YAML in line 1"),
        ("a: &x [1]\nb: *x", "uses the alias"),
        ("[" * 100, "is neither JSON nor YAML|nested deeper"),
        ("a: !!python/object/apply:os.system [true]", "is neither JSON nor YAML"),
        ("mcpServers: {}\n---\nmcpServers: {}", "is neither JSON nor YAML"),
    ],
)
def test_what_is_no_document_is_refused_with_a_reason(text: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        import_text(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.sampled_from(["{{a.b|into}}", "${X}", "a:b"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
MEMBERS = (
    "image env secrets config command volumes remote tools type url name value packages transport headers oauth args",
    "metadata server identifier version environmentVariables packageArguments providers container parameters",
)
members = st.sampled_from(" ".join(MEMBERS).split())
servers = st.dictionaries(
    st.text(min_size=1, max_size=8), st.dictionaries(members, json_values, max_size=6), max_size=3
)


@given(servers)
def test_nonsense_inside_of_a_known_format_is_left_out_and_never_an_accident(
    found: dict[str, dict[str, object]],
) -> None:
    for root in (
        {"registry": found},
        {"mcpServers": found},
        {"servers": found},
        {"servers": [{"server": server} for server in found.values()]},
        {"servers": [{"type": "image", "snapshot": {"server": server}} for server in found.values()]},
    ):
        imported = import_text(json.dumps(root), format=None if found else "clients")
        assert len(imported.entries) <= len(found)


def test_the_shipped_catalogue_survives_the_way_to_docker_and_back(shipped: Catalog) -> None:
    """Whatever Docker's format can say; a package, limits and an entry's own transport are not in it."""
    document, notes = export_docker("all", shipped.entries.values())
    back = import_text(yaml.safe_dump(document, sort_keys=False))
    left_out = {note.partition(":")[0] for note in notes if "left out" in note}
    assert set(back.entries) == set(shipped.entries) - left_out
    same = ("title", "description", "image", "remote", "args", "env", "network", "hosts", "volumes", "license", "oauth")
    for id, entry in back.entries.items():
        before = shipped.entry(id)
        if before.image and before.remote:
            continue  # Docker's format has one of them
        for member in same:
            assert getattr(entry, member) == getattr(before, member), (id, member)
        assert {s.name for s in entry.config} == {s.name for s in before.config}, id
        assert {s.name for s in entry.secrets} == {s.name for s in before.secrets}, id
        assert set(entry.tools) == set(before.tools) - {tool.name for tool in before.per_call}, id


def test_a_profile_survives_the_way_to_docker_and_back(shipped: Catalog) -> None:
    profile = shipped.profile("starter")
    document, _ = export_docker_profile(shipped, profile)
    back = import_text(json.dumps(document))
    assert set(back.profiles) == {"starter"}
    assert back.profiles["starter"].title == profile.title
    assert set(back.profiles["starter"].servers) <= set(profile.servers)
    assert back.profiles["starter"].servers


def test_packages_survive_the_way_to_a_client_and_back(shipped: Catalog) -> None:
    entries = [entry for entry in shipped.entries.values() if entry.package is not None]
    document, _ = export_clients(entries)
    back = import_text(json.dumps(document))
    assert set(back.entries) == {entry.id for entry in entries}
    for entry in entries:
        package = back.entries[entry.id].package
        assert package is not None
        assert entry.package is not None
        assert (package.name, package.version) == (entry.package.name, entry.package.version)
        assert back.entries[entry.id].command == entry.command


def test_entries_survive_the_way_to_a_server_json_and_back(shipped: Catalog) -> None:
    for entry in shipped.entries.values():
        document, notes = export_registry(entry, "io.example.team", "1.0.0")
        if entry.per_call or entry.built_in:
            assert any("cannot be written" in note for note in notes), entry.id
            continue
        back = import_text(json.dumps(document)).entries[entry.id]
        assert (back.image, back.package is None) == (entry.image, entry.package is None), entry.id
        if entry.image or entry.package:
            assert back.env == entry.env, entry.id
        assert {secret.env for secret in back.secrets} <= {secret.env for secret in entry.secrets}, entry.id


def test_what_docker_has_no_place_for_is_said_and_the_rest_comes_back(tmp_path: Path) -> None:
    text = """\
version: 1
servers:
  box:
    title: Box
    description: Keeps things.
    image: example/box:1
    config: [{name: level, type: integer, env: LEVEL}, {name: paths, type: list, arg: ""}]
    secrets: [{name: box.token, env: TOKEN}]
    tools: [put, take]
profiles:
  work:
    title: Work
    servers: [office, box]
    details:
      office:
        server: box
        settings: {level: 3, paths: [/a, /b]}
        secrets: {box.token: work/box}
        rename: {put: store}
    tools: {office: [put]}
    policy: read-only
    budget: {tools: 9}
    for: {principals: [ada]}
"""
    catalog = parse_catalog(tmp_path / "catalog.yaml", text)
    document, notes = export_docker_profile(catalog, catalog.profile("work"))
    assert notes == [
        "office: is called box there",
        "office: Docker's profile has no place for secrets",
        "office: Docker's profile has no place for rename",
        "box: left out: Docker's profile has each server once, and box is there already",
        "work: Docker's profile has no place for for",
        "work: Docker's profile has no place for budget",
        "work: Docker's profile has no place for the policy read-only",
    ]
    back = import_text(json.dumps(document)).profiles["work"]
    assert back.servers == ("box",)
    assert dict(back.detail("box").settings) == {"level": 3, "paths": ("/a", "/b")}
    assert back.tools["box"] == ("put",)
