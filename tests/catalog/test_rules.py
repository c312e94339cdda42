"""The rules file: read as strictly as a catalog, and its patterns mean what they say."""

from pathlib import Path

import pytest

from catalog import CatalogInvalid, CatalogUnreadable, load_rules
from catalog.rules import host_fits, image_fits, package_fits

WHOLE = """\
version: 1
allow:
  registries: [docker.io/mcp/*, ghcr.io/acme/box]
  publishers: [acme]
  packages: [pypi, "npm:@acme/*"]
  remotes: ["*.acme.com", mcp.example.com]
  networks: [none]
signed: ["*"]
block:
  - {image: docker.io/mcp/old, reason: It leaks.}
publishers:
  acme:
    images: [ghcr.io/acme/*]
    keys:
      - |
        -----BEGIN PUBLIC KEY-----
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
        -----END PUBLIC KEY-----
"""


def problems(folder: Path, text: str) -> list[str]:
    path = folder / "rules.yaml"
    path.write_text(text)
    with pytest.raises(CatalogInvalid) as caught:
        load_rules(path)
    return [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]


def test_every_key_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(WHOLE)
    rules = load_rules(path)
    assert rules.allow.registries == ("docker.io/mcp/*", "ghcr.io/acme/box")
    assert rules.allow.networks == ("none",)
    assert rules.publishers["acme"].images == ("ghcr.io/acme/*",)
    assert rules.block[0].reason == "It leaks."


def test_all_problems_are_told_with_their_lines(tmp_path: Path) -> None:
    wrong = "version: 1\nallow:\n  registry: [a]\n  networks: [intranet]\nblock:\n- {image: a, entry: b, reason: x}\n"
    found = problems(tmp_path, wrong + "- {package: cargo:x, reason: x}\n- {entry: b}\nalow: {}\n")
    assert found[0] == '3: unknown key "allow.registry" (did you mean "registries"?)'
    assert found[1].startswith("4: allow.networks[0]: is \"intranet\", but must be one of 'none' or 'internet'")
    assert found[2] == "6: block[0]: must name exactly one of entry, image, package and remote"
    assert found[3].startswith('7: block[1].package: "cargo:x" names no packages')
    assert found[4] == "8: the key block[2].reason is missing; add it"
    assert found[5] == '9: unknown key "alow" (did you mean "allow"?)'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("allow: {}\n", "the key version is missing"),
        ("version: 2\n", "version"),
        ("- version\n", "must be a mapping that begins with version: 1"),
        (
            "version: 1\nallow: {publishers: [acme]}\n",
            "allow names the publisher acme, which this file does not define",
        ),
        ("version: 1\nallow: {remotes: [https://x.example]}\n", "is no host"),
        ("version: 1\nallow: {registries: [https://ghcr.io]}\n", "names no images"),
        ("version: 1\nversion: 1\n", "version"),
        ("", "is empty"),
    ],
)
def test_what_could_be_misread_is_refused(text: str, why: str, tmp_path: Path) -> None:
    assert any(why in problem for problem in problems(tmp_path, text))


def test_a_missing_file_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(CatalogUnreadable):
        load_rules(tmp_path / "rules.yaml")


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("*", "docker.io/a/b", True),
        ("docker.io/mcp/*", "docker.io/mcp/time", True),
        ("mcp/*", "docker.io/mcp/time", True),
        ("docker.io/mcp/*", "docker.io/mcpx/time", False),
        ("ghcr.io/*", "ghcr.io/acme/box", True),
        ("ghcr.io/*", "ghcr.io.evil.example/acme/box", False),
        ("ghcr.io/acme/box", "ghcr.io/acme/box", True),
        ("ghcr.io/acme/box", "ghcr.io/acme/box2", False),
    ],
)
def test_patterns_of_images(pattern: str, name: str, fits: bool) -> None:
    assert image_fits(pattern, name) is fits


@pytest.mark.parametrize(
    ("pattern", "host", "fits"),
    [
        ("*", "a.example", True),
        ("*.acme.com", "mcp.acme.com", True),
        ("*.acme.com", "acme.com", False),
        ("*.acme.com", "evilacme.com", False),
        ("acme.com", "acme.com", True),
        ("acme.com", "mcp.acme.com", False),
    ],
)
def test_patterns_of_hosts(pattern: str, host: str, fits: bool) -> None:
    assert host_fits(pattern, host) is fits


@pytest.mark.parametrize(
    ("pattern", "ecosystem", "name", "fits"),
    [
        ("pypi", "pypi", "anything", True),
        ("pypi", "npm", "anything", False),
        ("pypi:Mcp_Server.Time", "pypi", "mcp-server-time", True),
        ("pypi:mcp-server-*", "pypi", "mcp_server_time", True),
        ("npm:@acme/*", "npm", "@acme/box", True),
        ("npm:@acme/*", "npm", "@acmeevil/box", False),
        ("npm:box", "npm", "Box", False),
    ],
)
def test_patterns_of_packages(pattern: str, ecosystem: str, name: str, fits: bool) -> None:
    assert package_fits(pattern, ecosystem, name) is fits
