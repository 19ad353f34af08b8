# shellcheck shell=bash
# Sourced by demo.sh and test.sh: a virtual environment with the given requirements, made once.
#
#   make_environment FOLDER requirements.txt [more.txt ...]
#
# VENV names another folder. It is used again as long as the requirements, the interpreter and its
# place stay the same. Needs Python 3.11 or newer: PYTHON=python3.12 picks one.

make_environment() {
  local venv=${VENV:-$1} python=${PYTHON:-python3} stamp files=() file
  shift
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than 3.11: install Python 3.11+, or set PYTHON=..." >&2
    exit 2
  fi
  stamp=$(echo "$PWD/$venv" && "$python" -VV && cat "$@")
  if [ "$(cat "$venv/.requirements" 2>/dev/null)" != "$stamp" ]; then
    echo "installing $* into $venv (once; a few minutes)"
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 && ! "$python" -m venv --clear "$venv"; then
      echo "error: $python cannot make $venv: install its venv module (Debian: python3-venv)" >&2
      exit 2
    fi
    for file in "$@"; do files+=(-r "$file"); done
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${files[@]}"
    echo "$stamp" >"$venv/.requirements"
  fi
  PATH=$(cd "$venv" && pwd)/bin:$PATH
  export PATH PYTHONNOUSERSITE=1
  unset PYTHONPATH PYTHONHOME
}
