# Sourced by the scripts beside it: makes the checkout's own virtual environment, once.
#
#   source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
#   lowcomm_setup [extras]        # extras as pip writes them, e.g. "dev,hf"
#
# Afterwards LOWCOMM_ROOT is the checkout, and `python`, `lowcomm`, `torchrun` are those of its .venv.
# Needs python3 >= 3.11 (or PYTHON=/path/to/python) and, the first time, a way to PyPI.
# With SETUP=off nothing is made: `python` and `lowcomm` are those on the PATH.

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

_lowcomm_packages() { # VENV: how many packages are in it
    { compgen -G "$1/lib/python*/site-packages/*.dist-info" || true; } | wc -l
}

_lowcomm_pip() { # VENV COMMAND...: run pip for it, and say what it is at: each package, and while one takes long
    local venv="$1" log="$1/lowcomm-pip.txt" began=$SECONDS doing="looking for packages" said="" told=0
    local before after line name version pip status from_pip
    shift
    before=$(_lowcomm_packages "$venv")
    exec {from_pip}< <(exec "$@" 2>&1)
    pip=$!
    : >"$log"
    while true; do
        if IFS= read -r -t 2 -u "$from_pip" line; then
            printf '%s\n' "$line" >>"$log"
            case "$line" in
                Collecting\ *) doing="looking for ${line#Collecting }" doing="${doing%% (from *}" ;;
                *Downloading*.metadata*) continue ;;
                *Downloading\ *)
                    IFS='- ' read -r name version _ <<<"${line#*Downloading }"
                    doing="downloading $name ${version%.tar.gz} (${line##* (}"
                    ;;
                Processing\ *.whl) doing="taking $(basename "$line")" ;;
                Installing\ collected*) doing="installing $(wc -w <<<"${line#*: }") packages" ;;
                *) continue ;;
            esac
        elif [ $? -le 128 ]; then
            break # pip has ended; above 128 it only said nothing for two seconds
        elif [[ "$doing" == installing* ]]; then
            after=$(_lowcomm_packages "$venv")
            doing="${doing%%, *}, $((after - before)) are there"
        fi
        if [ -t 2 ]; then
            printf '\r\033[Klowcomm: %3d s  %.*s' $((SECONDS - began)) $((${COLUMNS:-80} - 18)) "$doing" >&2
        elif [[ "$doing" != "$said" && "$doing" != looking* ]] || [ $((SECONDS - began - told)) -ge 10 ]; then
            printf 'lowcomm: %3d s  %s\n' $((SECONDS - began)) "$doing" >&2
            said="$doing" told=$((SECONDS - began))
        fi
    done
    exec {from_pip}<&-
    wait "$pip" && status=0 || status=$?
    if [ -t 2 ]; then printf '\r\033[K' >&2; fi
    if [ "$status" = 0 ]; then
        echo "lowcomm: installed in $((SECONDS - began)) s" >&2
    else
        tail -n 20 "$log" >&2
    fi
    return "$status"
}

lowcomm_setup() {
    if [ "${SETUP:-on}" = off ]; then # the python on the PATH has everything
        export LOWCOMM_ROOT
        return 0
    fi
    local extras="${1:-}" venv="$LOWCOMM_ROOT/.venv" base stamp wanted missing extra
    if ! "$venv/bin/python" -c '' 2>/dev/null; then
        base="$(_lowcomm_python)" || return 1
        echo "lowcomm: making $venv with $base (some seconds)" >&2
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
        if ! _lowcomm_pip "$venv" "$venv/bin/python" -m pip install --no-input --progress-bar off \
            --disable-pip-version-check -e "$LOWCOMM_ROOT${extras:+[$extras]}"; then
            echo "lowcomm: pip could not install it; see the lines above, all of them in $venv/lowcomm-pip.txt" >&2
            return 1
        fi
        for extra in base ${extras//,/ }; do printf '%s\n' "$wanted" >"$venv/.lowcomm-$extra"; done
    fi

    export LOWCOMM_ROOT VIRTUAL_ENV="$venv" PATH="$venv/bin:$PATH"
    unset PYTHONHOME
}
