#!/bin/sh
# Makes .venv as constraints.txt says; the Makefile calls it when .venv/.installed is missing or old.
# Plain sh, since on a bare machine nothing else is there yet.
set -u

fail() { # line…: say what stopped us, and leave no stamp behind
    rm -f .venv/.installed
    printf '\n' >&2
    printf '%s\n' "$@" >&2
    exit 1
}

describe() { # prints what this Python is; succeeds when it is new enough and can make environments
    "$1" -c '
import sys
sys.stdout.write(sys.version.split()[0])
sys.stdout.flush()
if sys.version_info < (3, 11):
    sys.exit(", too old")
try:
    import ensurepip, venv
except ImportError:
    sys.exit(", cannot make virtual environments (Debian and Ubuntu: apt install python3-venv)")
' 2>&1
}

make_environment() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3.13 python3.12 python3.11 python3 python
    fi
    found=
    for name in "$@"; do
        path=$(command -v "$name") || continue
        if version=$(describe "$path"); then
            echo "Making .venv with $path ($version)"
            "$path" -m venv --clear .venv && return
            fail "Step failed: making the virtual environment .venv with $path; its own words stand above." \
                "Name another Python: make book PYTHON=/path/to/python3.12"
        fi
        # A version manager's placeholder answers with several lines: the first tells enough.
        found="$found
  $name ($path): $(printf '%s\n' "$version" | head -n 1)"
    done
    fail "The book needs Python 3.11 or newer with its venv module. Looked for: $*. Found:${found:- none.}" \
        "Install one with your package manager or from https://www.python.org/downloads/," \
        "or name one that is elsewhere: make book PYTHON=/path/to/python3.12"
}

.venv/bin/python -c '' 2>/dev/null || make_environment

echo "Installing what constraints.txt says into .venv (minutes the first time)"
.venv/bin/python -m pip install --disable-pip-version-check --no-input --quiet \
    --constraint constraints.txt --editable '.[book,test,scale]' ||
    fail "Step failed: installing the packages of constraints.txt into .venv; pip's own words stand above." \
        "If they speak of connections, retries or 'no matching distribution', the package registry was" \
        "not reached: check the network, a proxy (HTTPS_PROXY) or a mirror (PIP_INDEX_URL)." \
        "Then give the same command again: what is already installed stays."

pwd >.venv/.installed
