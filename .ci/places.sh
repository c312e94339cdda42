# Where the set-up scripts find and put things, and how they speak. To be sourced, from the top of the checkout.
# Knows nothing of what is installed.
# shellcheck shell=bash

cache=${LOCKGATE_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/lockgate}
venv=$PWD/.venv
NODE_VERSION=24.19.0 # as in gateway/nodejs.py

say() {
    if [ -t 1 ]; then printf '\033[1m==>\033[0m %s\n' "$*"; else printf '==> %s\n' "$*"; fi
}
die() {
    printf '\nlockgate: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '    %s\n' "$line" >&2; done
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" = 0 ]; }

# apt-get as root without questions. $@: packages.
apt_install() {
    if [ ! -e "$cache/.apt-updated" ] || [ -n "$(find "$cache/.apt-updated" -mmin +720)" ]; then
        apt-get -qq update
        mkdir -p "$cache" && touch "$cache/.apt-updated"
    fi
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" >/dev/null
}

# uv reads neither pip's settings nor, by default, the system's certificates: hand them over. $1: a python with pip.
index_settings() {
    local asked
    asked=${PIP_INDEX_URL:-$("$1" -m pip config get global.index-url 2>/dev/null || true)}
    [ -z "$asked" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$asked}"
    asked=${PIP_CERT:-$("$1" -m pip config get global.cert 2>/dev/null || true)}
    [ -z "$asked" ] || export SSL_CERT_FILE="${SSL_CERT_FILE:-$asked}"
    [ -z "${PIP_TRUSTED_HOST:-}" ] || export UV_INSECURE_HOST="${UV_INSECURE_HOST:-$PIP_TRUSTED_HOST}"
    export UV_PYTHON_DOWNLOADS=never UV_LINK_MODE="${UV_LINK_MODE:-copy}"
    [ -t 2 ] || export UV_NO_PROGRESS=1
}

# The lines of one package in a lock file: its version and its hashes. $1: lock file, $2: package.
locked() {
    awk -v name="$2" '/^[A-Za-z0-9]/ { mine = index($0, name "==") == 1 } mine' "$1"
}
