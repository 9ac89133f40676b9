#!/usr/bin/env bash
# Everything that this machine needs, in the order: system packages, virtual environment, template. Run by `make setup`.
# Can be run again at any time, and does only what is missing. No package source is named here: where the distribution's
# own release has too old a runsc, a later suite of the same archive is used, at the address that apt already uses.
#
# usage: actors/setup.sh [venv]      "venv": no system packages and no template (for `make lint`)
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3}
OLDEST_RUNSC=20240729
SOURCES=/etc/apt/sources.list.d

say() { printf 'setup: %s\n' "$*" >&2; }
die() { printf 'setup: error: %s\nsetup: next: %s\n' "$1" "$2" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else die "installing system packages needs root" "run make as root"
    fi
}

updated=
apt_update() {
    [ -n "$updated" ] && return
    say "reading the package lists"
    as_root apt-get update -qq >/dev/null || die "apt-get update failed" "see what it says above; is there a network?"
    updated=yes
}

apt_install() {
    command -v apt-get >/dev/null || die "this is no Debian or Ubuntu, and these are missing: $*" "install them by hand"
    apt_update
    say "installing $*"
    local log
    log=$(mktemp)
    if ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        die "apt-get install $* failed" "mend what apt says above, then run this again"
    fi
    rm -f "$log"
}

# --- system packages ---------------------------------------------------------------------------------------------------

missing_packages() {
    local pair
    for pair in mmdebstrap:mmdebstrap busybox:busybox-static mkfs.btrfs:btrfs-progs mkfs.ext4:e2fsprogs mount:mount unshare:util-linux ip:iproute2; do
        command -v "${pair%%:*}" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null \
            || printf '%s ' "${pair##*:}"
    done
}

# The release of the installed runsc, as a number; 0 where there is none.
runsc_release() {
    local said
    said=$(runsc --version 2>/dev/null | sed -nE '1s/^runsc version (release-|0\.0~)(20[0-9]{6}).*/\2/p') || true
    printf '%s' "${said:-0}"
}

# The newest version of the package that apt knows and that will do; nothing where there is none.
offered_runsc() {
    apt-cache madison runsc 2>/dev/null | awk -F ' *[|] *' -v oldest=$OLDEST_RUNSC '
        match($2, /20[0-9][0-9][0-9][0-9][0-9][0-9]/) && substr($2, RSTART, 8) >= oldest { print $2; exit }'
}

# Prints "URI COMPONENT..." of this release in the distribution's own archive, as apt is set up here.
archive() {
    apt-get indextargets --format '$(ORIGIN)|$(RELEASE)|$(REPO_URI)' 'Created-By: Packages' \
        | awk -F '|' -v origin="$1" -v release="$2" '$1 == origin && $2 == release { print $3; exit }'
}

# Adds a suite of the archive that apt uses already. Nothing but runsc is taken from it.
add_suite() {
    local origin=$1 release=$2 suite=$3 component=$4 keyring=$5 uri signed=
    uri=$(archive "$origin" "$release")
    [ -n "$uri" ] || die "apt has no source of $origin $release, so none of $suite can be derived" \
        "install runsc $OLDEST_RUNSC or newer by hand"
    [ -e "$keyring" ] && signed="[signed-by=$keyring] "
    say "adding $suite to the package sources, for runsc alone"
    printf 'deb %s%s %s %s\n' "$signed" "$uri" "$suite" "$component" | as_root tee "$SOURCES/hourglass-$suite.list" >/dev/null
    printf 'Package: *\nPin: release n=%s\nPin-Priority: 1\n\nPackage: runsc\nPin: release n=%s\nPin-Priority: 500\n' \
        "$suite" "$suite" | as_root tee "/etc/apt/preferences.d/hourglass-$suite" >/dev/null
    updated=
    apt_update
}

install_runsc() {
    [ "$(runsc_release)" -ge $OLDEST_RUNSC ] && return
    command -v apt-get >/dev/null || die "there is no runsc" "install runsc $OLDEST_RUNSC or newer by hand"
    apt_update
    if [ -z "$(offered_runsc)" ]; then
        . /etc/os-release
        case "$ID-$VERSION_CODENAME" in
            debian-bookworm)
                add_suite Debian bookworm bookworm-backports main /usr/share/keyrings/debian-archive-keyring.gpg ;;
            ubuntu-noble)
                # Its own is 20221219, and its backports have none. The package needs no library of the later release.
                add_suite Ubuntu noble resolute universe /usr/share/keyrings/ubuntu-archive-keyring.gpg ;;
        esac
    fi
    local version
    version=$(offered_runsc)
    [ -n "$version" ] || die "apt offers no runsc of release $OLDEST_RUNSC or newer" "install one by hand"
    apt_install "runsc=$version"
    [ "$(runsc_release)" -ge $OLDEST_RUNSC ] \
        || die "$(command -v runsc || echo runsc) is still too old" "take it off the PATH: $(type -ap runsc | tr '\n' ' ')"
}

# --- virtual environment -----------------------------------------------------------------------------------------------

find_python() {
    local name
    for name in "$PYTHON" python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
}

install_venv() {
    local stamp wanted python
    stamp=$VENV/.hourglass-stamp
    wanted=$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-64)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    python=$(find_python)
    if [ -z "$python" ]; then
        apt_install python3
        python=$(find_python)
        [ -n "$python" ] || die "there is no Python 3.11 or newer" "install one, then: make setup PYTHON=/path/to/it"
    fi
    if [ ! -x "$VENV/bin/python" ] || ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        # Debian and Ubuntu keep a part of the standard library in a package of its own.
        "$python" -c 'import ensurepip, venv' 2>/dev/null \
            || apt_install "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
        say "making the virtual environment $VENV"
        "$python" -m venv --clear "$VENV"
    fi
    say "installing the Python packages (a minute or two)"
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]' -c constraints.txt \
        || die "pip install failed" "see what it says above; is there a network?"
    printf '%s\n' "$wanted" >"$stamp"
}

# --- all ---------------------------------------------------------------------------------------------------------------

if [ "${1:-}" != venv ]; then
    packages=$(missing_packages)
    # shellcheck disable=SC2086 # one word for each package
    [ -z "$packages" ] || apt_install $packages
    install_runsc
fi
install_venv
if [ "${1:-}" != venv ]; then
    as_root "$VENV/bin/python" -m actors.template
fi
