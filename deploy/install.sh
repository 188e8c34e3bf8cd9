#!/bin/sh
# Makes or updates an environment from locks, and puts this checkout into it as an editable install.
#
#   deploy/install.sh ENVIRONMENT LOCK...     deploy/install.sh .venv cpu demo
#
# Needs Python 3.11 to 3.14 and nothing else. uv does the work; where the machine has none, a pinned one goes
# into .uv/. Everything that is downloaded is checked against the hashes in deploy/requirements/.
set -eu
cd "$(dirname "$0")/.."
export UV_PYTHON_DOWNLOADS=never

fail() {
    printf 'headwater: %s\n' "$*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; raise SystemExit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        is_new_enough "$PYTHON" ||
            fail "PYTHON=$PYTHON is '$("$PYTHON" --version 2>&1 | head -n 1)': expected Python 3.11 to 3.14"
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if is_new_enough "$candidate"; then
            # The interpreter itself, not a shim that depends on the folder it is called in.
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    fail "python3 is '$(python3 --version 2>&1 || true)': expected Python 3.11 to 3.14." \
        "Install one, or name it: make ... PYTHON=/path/to/python3.12"
}

runs_here() { # 0.8 is the oldest uv that these scripts are known to work with
    case "$("$1" --version 2>/dev/null)" in
        '' | 'uv 0.'[0-7].* | 'uv 0.'[0-7]) return 1 ;;
        'uv '*) return 0 ;;
        *) return 1 ;;
    esac
}

find_uv() {
    for candidate in uv .uv/bin/uv .uv/lib/bin/uv; do
        if runs_here "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    printf 'headwater: no uv on this machine, bringing one into .uv/\n' >&2
    rm -rf .uv
    pip='-m pip --disable-pip-version-check --no-input install --quiet --require-hashes --only-binary :all:'
    # Debian's python3 has no ensurepip unless python3-venv is installed; then a pip of the machine's will do.
    # shellcheck disable=SC2086
    if "$python" -m venv .uv >/dev/null 2>&1 && .uv/bin/python $pip -r deploy/requirements/uv.txt >&2; then
        printf '.uv/bin/uv\n'
    elif rm -rf .uv && "$python" -m pip --version >/dev/null 2>&1 &&
        "$python" $pip --target .uv/lib -r deploy/requirements/uv.txt >&2; then
        printf '.uv/lib/bin/uv\n'
    else
        rm -rf .uv
        fail "cannot install uv: $python has neither 'venv' nor 'pip', or the package index is out of reach." \
            "On Debian and Ubuntu: apt install python3-venv. Or install uv yourself, and run this again"
    fi
}

environment=$1
shift
python=$(find_python)
uv=$(find_uv)

# A stamp vouches for a finished installation, so none may outlive the start of another.
rm -f "$environment"/installed*
if ! is_new_enough "$environment/bin/python"; then
    "$uv" venv --quiet --clear --python "$python" "$environment"
fi

for lock in "$@"; do
    set -- "$@" "deploy/requirements/$lock.txt"
    shift
done
if [ -t 2 ]; then quiet=''; else quiet=--quiet; fi # progress bars are for people
# shellcheck disable=SC2086
"$uv" pip sync $quiet --require-hashes --python "$environment/bin/python" "$@"
"$uv" pip install --quiet --no-deps --python "$environment/bin/python" \
    --build-constraints deploy/requirements/build.txt --editable .
