# Sourced by the scripts beside it: makes the checkout's own virtual environment, once.
#
#   source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
#   lowcomm_setup [extras]        # extras as pip writes them, e.g. "dev,hf"
#
# Afterwards LOWCOMM_ROOT is the checkout, and `python`, `lowcomm`, `torchrun` are those of its .venv.
# Needs python3 >= 3.11 (or PYTHON=/path/to/python) and, the first time, a way to PyPI.

LOWCOMM_ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

_lowcomm_python() {
    local candidate
    # a PYTHON that was asked for is used or refused, never replaced
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return 0
        fi
    done
    echo "lowcomm: expected python3 >= 3.11, found ${PYTHON:-python3}: $("${PYTHON:-python3}" -V 2>/dev/null || echo "none that runs");" \
        "install one, or name it: PYTHON=/path/to/python bash launch/..." >&2
    return 1
}

lowcomm_setup() {
    local extras="${1:-}" venv="$LOWCOMM_ROOT/.venv" base stamp wanted missing extra
    if ! "$venv/bin/python" -c '' 2>/dev/null; then
        base="$(_lowcomm_python)" || return 1
        echo "lowcomm: making $venv with $base" >&2
        if ! "$base" -m venv --clear "$venv"; then
            echo "lowcomm: $base can't make virtual environments;" \
                "install its venv module (Debian: apt install python3-venv)" >&2
            return 1
        fi
    fi

    # One stamp per extra, so that asking for less than is there installs nothing.
    wanted="$(cksum <"$LOWCOMM_ROOT/pyproject.toml")"
    missing=""
    for extra in base ${extras//,/ }; do
        stamp="$venv/.lowcomm-$extra"
        if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then missing=1; fi
    done
    if [ -n "$missing" ]; then
        echo "lowcomm: installing lowcomm${extras:+[$extras]} into $venv (a few minutes the first time)" >&2
        if ! "$venv/bin/python" -m pip install --quiet -e "$LOWCOMM_ROOT${extras:+[$extras]}" >&2; then
            echo "lowcomm: pip could not install it; see the lines above" >&2
            return 1
        fi
        for extra in base ${extras//,/ }; do printf '%s\n' "$wanted" >"$venv/.lowcomm-$extra"; done
    fi

    export LOWCOMM_ROOT VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
    unset PYTHONHOME
}
