"""The written forms an entry may use: ids, image references, package versions, URLs, paths, variable names.

Does not know which field uses which form, and never looks anything up: a well-formed name may not exist.
Each check returns its argument unchanged, or raises ValueError with a sentence on what to write instead.
"""

import ipaddress
import posixpath
import re
import unicodedata
from typing import NamedTuple
from urllib.parse import urlsplit

from catalog.spelling import quoted

_ID = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,47}")
_CATEGORY = re.compile(r"[a-z][a-z0-9-]{0,31}")
_TOOL = re.compile(r"(?=.{1,128}$)[A-Za-z0-9_./-]+(?: [A-Za-z0-9_./-]+)*")
_NEW_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CALLER = re.compile(r"[!-~]{1,256}")
_SECRET_REFERENCE = re.compile(r"(?=.{1,128}$)[A-Za-z0-9][A-Za-z0-9_-]*(?:[./][A-Za-z0-9_-]+)+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_SECRET = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
_RUNTIME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VOLUME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,47}")
_TARGET = re.compile(r"/[A-Za-z0-9._/-]{1,200}")
_MOUNT_TARGET = re.compile(r"/[^:,\\]{1,400}")
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")
_SETTING = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}(?:\.[A-Za-z0-9_-]{1,63})?")
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")
_HOST_NAME = re.compile(
    r"(?:\*|(?:\*\.)?[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*"
    r"|[0-9.]+/[0-9]{1,2}|\[[0-9a-f:.]+(?:/[0-9]{1,3})?\])"
    r":[0-9]{1,5}"
)
_URL_PATH = re.compile(r"/[A-Za-z0-9._~/-]{0,200}")
_DEBIAN = re.compile(r"[a-z0-9][a-z0-9+.-]{1,63}")

# Image references as the distribution project defines them, with a lower-case host.
_PATH_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_HOST = r"(?:localhost|[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)+)(?::[0-9]{1,5})?"
_HOST_WITH_PORT = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?:[0-9]{1,5}"
_REPOSITORY = re.compile(rf"(?:(?:{_HOST}|{_HOST_WITH_PORT})/)?{_PATH_PART}(?:/{_PATH_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
LONGEST_REFERENCE = 255
LONGEST_PATH = 4096
LAST_PORT = 65_535

# PEP 508 names, PEP 440 versions; npm names and SemVer 2.0 versions.
_PYPI_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_PYPI_VERSION = re.compile(
    r"(?:[0-9]+!)?[0-9]+(?:\.[0-9]+)*(?:(?:a|b|rc)[0-9]+)?(?:\.post[0-9]+)?(?:\.dev[0-9]+)?"
    r"(?:\+[a-z0-9]+(?:\.[a-z0-9]+)*)?"
)
_PYPI_PIN = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:\[[A-Za-z0-9._,-]+\])?"
    r"(?:(?:===|==|~=|!=|<=|>=|<|>)[A-Za-z0-9.*+!]+)(?:,(?:==|~=|!=|<=|>=|<|>)[A-Za-z0-9.*+!]+)*"
)
_NPM_NAME = re.compile(r"(?:@[a-z0-9~][a-z0-9._~-]*/)?[a-z0-9~][a-z0-9._~-]*")
_NPM_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?")
LONGEST_PACKAGE_NAME = 214

KEPT_BY_THE_SYSTEM = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr",
    "/var/run",
)  # fmt: skip
"""Trees of a container in which nothing of ours may be mounted."""
NOT_ITSELF = ("/home", "/mnt", "/opt", "/root", "/srv", "/tmp", "/var", "/var/lib")  # noqa: S108 - refused, not used
"""Folders a volume may be mounted below but not over."""


FORMS = {
    name: f"^(?:{pattern.pattern})$"
    for name, pattern in (
        ("id", _ID),
        ("category", _CATEGORY),
        ("tool", _TOOL),
        ("new-name", _NEW_NAME),
        ("caller", _CALLER),
        ("secret-reference", _SECRET_REFERENCE),
        ("variable", _VARIABLE),
        ("volume", _VOLUME),
        ("target", _TARGET),
        ("mount", _MOUNT_TARGET),
        ("header", _HEADER),
        ("debian", _DEBIAN),
        ("setting", _SETTING),
        ("scope", _SCOPE),
        ("host", _HOST_NAME),
        ("path", _URL_PATH),
    )
}
"""The same as regular expressions that editors understand; the checks below refuse some texts more."""
FORMS["secret"] = f"^[A-Za-z][A-Za-z0-9_-]{{0,47}}\\.{_SECRET.pattern}$"


def check_id(text: str) -> str:
    """Check the id of an entry or the name of a profile."""
    for c in text:
        if not c.isascii():
            name = unicodedata.name(c, "no name")
            raise ValueError(f"contains U+{ord(c):04X} ({name}); use only ASCII letters, digits, _ and -")
    if not _ID.fullmatch(text):
        raise ValueError(f"{quoted(text)} is no valid id: begin with a letter, then at most 47 letters, digits, _ or -")
    if "__" in text:
        raise ValueError(f'{quoted(text)} contains "__", which separates server from tool; use a single _ or -')
    if text[-1] in "_-":
        raise ValueError(f"{quoted(text)} ends in {quoted(text[-1])}; end it with a letter or digit")
    return text


def check_image(text: str) -> str:
    """Check an image reference: lower-case repository with a tag, a sha256 digest, or both."""
    if len(text) > LONGEST_REFERENCE:
        raise ValueError(f"the image reference is longer than {LONGEST_REFERENCE} characters")
    if "://" in text:
        raise ValueError(f"{quoted(text)} is a URL; write the image reference alone, as in name@sha256:...")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        raise ValueError(f"{quoted(digest)} is no digest; write @sha256: and 64 lower-case hexadecimal digits")
    slash = rest.rfind("/")
    colon = rest.rfind(":")
    repository, tag = (rest, None) if colon <= slash else (rest[:colon], rest[colon + 1 :])
    if repository != repository.lower():
        raise ValueError(f"{quoted(repository)} has capitals; image repositories are lower-case")
    if not _REPOSITORY.fullmatch(repository):
        raise ValueError(f"{quoted(text)} is no image reference; write name:tag or name@sha256:...")
    if tag is not None and not _TAG.fullmatch(tag):
        raise ValueError(f"{quoted(tag)} is no image tag")
    if tag is None and not at:
        raise ValueError(f"{quoted(text)} has neither tag nor digest; write name@sha256:... (or name:tag)")
    return text


def check_package_name(ecosystem: str, text: str) -> str:
    """Check the name of a PyPI or npm package."""
    pattern = _PYPI_NAME if ecosystem == "pypi" else _NPM_NAME
    if len(text) > LONGEST_PACKAGE_NAME or not pattern.fullmatch(text):
        raise ValueError(f"{quoted(text)} is no {ecosystem} package name")
    return text


def check_package_version(ecosystem: str, text: str) -> str:
    """Check that a version is one exact version, not a range and not a tag."""
    pattern = _PYPI_VERSION if ecosystem == "pypi" else _NPM_VERSION
    if not pattern.fullmatch(text):
        raise ValueError(f"{quoted(text)} is not one exact {ecosystem} version; write it in full, as in 1.2.3")
    return text


def check_pin(ecosystem: str, text: str) -> str:
    """Check a further requirement installed beside the package: "name<2" for PyPI, "name@1.2.3" for npm."""
    if ecosystem == "pypi":
        if not _PYPI_PIN.fullmatch(text):
            raise ValueError(f'{quoted(text)} is no requirement; write a name and a version limit, as in "mcp<2"')
        return text
    name, at, version = text.rpartition("@")
    if not at or not _NPM_NAME.fullmatch(name) or not _NPM_VERSION.fullmatch(version):
        raise ValueError(f'{quoted(text)} is no requirement; write a name and an exact version, as in "zod@3.25.0"')
    return text


def check_debian_package(text: str) -> str:
    """Check the name of a Debian package."""
    return _matching(_DEBIAN, text, "is no Debian package name")


def check_remote_url(text: str) -> str:
    """Check the URL of a remote server: https, or http to this machine only."""
    parts = _split_url(text)
    if parts.scheme == "https":
        return text
    if parts.scheme == "http":
        if is_loopback(parts.hostname or ""):
            return text
        raise ValueError("http is only allowed to this machine (127.0.0.1, [::1], localhost); write https")
    raise ValueError("is no https URL; write https://, a host and a path")


def check_source_url(text: str) -> str:
    """Check the https URL where the source of a server can be read."""
    if _split_url(text).scheme != "https":
        raise ValueError("is no https URL; write https://, a host and a path")
    return text


def check_target(text: str) -> str:
    """Check where a volume is mounted: absolute, normalised, and not over a part of the system."""
    if not _TARGET.fullmatch(text):
        raise ValueError(
            f"{quoted(text)} is no usable path; write it from the root with letters, digits and . _ -: /data"
        )
    return _off_the_system(text)


def _off_the_system(text: str) -> str:
    if posixpath.normpath(text) != text or text.startswith("//"):
        raise ValueError(f"{quoted(text)} is not normalised; write it without .., //, or a final /")
    for tree in KEPT_BY_THE_SYSTEM:
        if text == tree or text.startswith(tree + "/"):
            raise ValueError(f"{quoted(text)} lies in {tree}, which belongs to the system; use /data")
    if text in NOT_ITSELF:
        raise ValueError(f"{quoted(text)} would hide what the image keeps there; use a folder below it, or /data")
    return text


MOUNTED_BELOW = ("/run/keys/", "/run/secrets/")
"""Where inside of /run single files may be mounted, as images expect keys there."""


def check_mount_target(text: str) -> str:
    """Check where a folder or file of the host is mounted: as for a volume, and below /run/keys and /run/secrets."""
    if not _MOUNT_TARGET.fullmatch(text) or not text.isprintable():
        raise ValueError("is no usable path; write it from the root, without colons, commas and invisible characters")
    if text.startswith(MOUNTED_BELOW) and posixpath.normpath(text) == text:
        return text
    return _off_the_system(text)


def check_host_path(text: str) -> str:
    """Check a path on the host: absolute and normalised. Whether it may be mounted is for the gateway to say."""
    if not text.startswith("/") or posixpath.normpath(text) != text or text.startswith("//"):
        raise ValueError("is no usable path of the host; write it from the root, without .., //, or a final /")
    if len(text) > LONGEST_PATH or not text.isprintable():
        raise ValueError("is no usable path of the host; it is too long or has invisible characters")
    return text


def check_setting_name(text: str) -> str:
    """Check the name of a setting; one dot may group settings: jira.url."""
    return _matching(_SETTING, text, "is no name of a setting; use letters, digits, _ and -, with one dot at most")


def check_host(text: str) -> str:
    """Check an address the server may reach: a host name, which may begin with *., or a network, and a port."""
    host, _, port = text.rpartition(":")
    if not _HOST_NAME.fullmatch(text) or not 0 < int(port) <= LAST_PORT:
        raise ValueError(f"{quoted(text)} is no host and port; write example.com:443 or *.example.com:443")
    if host[0] == "[" or re.fullmatch(r"[0-9./]+", host):
        try:
            ipaddress.ip_network(host.strip("[]"))
        except ValueError:
            text = quoted(text)
            raise ValueError(f"{text} is no network and port; write 10.1.0.0/16:443 or [2001:db8::/32]:443") from None
    return text


def check_container_runtime(text: str) -> str:
    """Check the name of a container runtime that an engine may have."""
    return _matching(_RUNTIME, text, "is no name of a container runtime; write it as the engine lists it: runsc")


def check_scope(text: str) -> str:
    """Check an OAuth scope (RFC 6749, section 3.3)."""
    return _matching(_SCOPE, text, "is no scope; write one scope a line, without spaces")


def check_url_path(text: str) -> str:
    """Check the path below which a container serves HTTP."""
    if not _URL_PATH.fullmatch(text) or posixpath.normpath(text) != text:
        raise ValueError(f"{quoted(text)} is no path; write it as in /mcp")
    return text


def check_variable(text: str) -> str:
    """Check the name of an environment variable."""
    return _matching(_VARIABLE, text, "is no variable name; use letters, digits and _, not beginning with a digit")


def check_secret_name(text: str) -> str:
    """Check the name of a secret: the id of the entry it belongs to, a dot, and its own name."""
    owner, dot, name = text.partition(".")
    if not dot:
        raise ValueError(f"{quoted(text)} names no owner; write the entry id, a dot and a name, as in brave.api_key")
    check_id(owner)
    if not _SECRET.fullmatch(name):
        raise ValueError(f"{quoted(name)} is no secret name; use lower-case letters, digits, _ and -")
    return text


def check_secret_reference(text: str) -> str:
    """Check the name under which a secret is kept that fills a place of an entry."""
    if not _SECRET_REFERENCE.fullmatch(text):
        # What stands here by mistake may be the secret itself, so it is not repeated.
        raise ValueError("is not the name of a secret; write words joined by . or /, as in work/github")
    return text


def check_new_name(text: str) -> str:
    """Check the name that a profile gives to a tool."""
    return _matching(_NEW_NAME, text, "is no name for a tool; use 1 to 64 letters, digits, _ and -")


def check_caller(text: str) -> str:
    """Check the name of a principal or group."""
    return _matching(_CALLER, text, "names nobody; use 1 to 256 visible ASCII characters without spaces")


def check_volume_name(text: str) -> str:
    """Check the name of a volume."""
    return _matching(_VOLUME, text, "is no volume name; use lower-case letters, digits and . _ -")


def check_category(text: str) -> str:
    """Check a category."""
    return _matching(_CATEGORY, text, "is no category; use lower-case letters, digits and -")


def check_tool(text: str) -> str:
    """Check the name of a tool as its server spells it."""
    if not _TOOL.fullmatch(text):
        raise ValueError(
            f"{quoted(text)} is no tool name; use 1 to 128 letters, digits and _ . / -, with single spaces inside"
        )
    return text


def check_header(text: str) -> str:
    """Check the name of an HTTP header (RFC 9110, section 5.1) that an entry may set."""
    if not _HEADER.fullmatch(text):
        raise ValueError(f"{quoted(text)} is no HTTP header name")
    if text.lower() in _HEADERS_WE_SET or text.lower().startswith("mcp-"):
        raise ValueError(f"the header {text} is set by the gateway itself; leave it out")
    return text


_HEADERS_WE_SET = frozenset(
    {"accept", "connection", "content-length", "content-type", "host", "transfer-encoding", "upgrade"}
)


def check_header_value(text: str) -> str:
    """Check the value of an HTTP header: printable ASCII, no line breaks."""
    if not text.isascii() or not text.isprintable():
        raise ValueError("a header value is printable ASCII on one line")
    return text


class _Url(NamedTuple):
    """The parts of a URL that the rules look at."""

    scheme: str
    hostname: str


def _matching(pattern: re.Pattern[str], text: str, problem: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{quoted(text)} {problem}")
    return text


def _split_url(text: str) -> _Url:
    # The text is never repeated in these messages: a URL can carry a password or a token.
    if not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
        raise ValueError("is no URL; percent-encode spaces, backslashes and characters outside of ASCII")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as exc:
        raise ValueError("is no URL; check the host and the port") from exc
    if not parts.hostname or port == 0:
        raise ValueError("is no URL with a host; write https://, a host and a path")
    if "@" in parts.netloc:
        raise ValueError("carries a user name or password; remove it and declare a secret")
    if "#" in text:
        raise ValueError("has a fragment (#...), which a server never sees; remove it")
    return _Url(parts.scheme, parts.hostname)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own; an IPv6 address stands without brackets."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
