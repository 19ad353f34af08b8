# shellcheck shell=bash
# Sourced by the scripts that need a virtual environment with given requirements.
#
#   make_environment FOLDER requirements.txt [more.txt ...]
#
# VENV overrides the folder and PYTHON the interpreter, which must be Python 3.11 or newer. The
# environment keeps a copy of each requirements file that it satisfies, so a second call installs
# only what is missing or has changed.

make_environment() {
  local venv=${VENV:-$1} python=${PYTHON:-python3} version found made file files=() missing=''
  shift
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "error: $python is missing or older than 3.11: install Python 3.11+, or set PYTHON=..." >&2
    exit 2
  fi
  version=$("$python" -VV)
  if [ -n "${PYTHON-}" ] && found=$("$venv/bin/python" -VV 2>/dev/null) && [ -n "$found" ] &&
    [ "$found" != "$version" ]; then
    echo "error: $venv is an environment of ${found%% (*}, and PYTHON is ${version%% (*}:" \
      "remove it, or name another folder (VENV=...)" >&2
    exit 2
  fi
  made="$PWD/$venv $version"
  if [ "$(cat "$venv/.requirements/made" 2>/dev/null)" != "$made" ]; then
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1 && ! "$python" -m venv --clear "$venv"; then
      echo "error: $python cannot make $venv: install its venv module (Debian: python3-venv)" >&2
      exit 2
    fi
    rm -rf "$venv/.requirements" && mkdir "$venv/.requirements"
    echo "$made" >"$venv/.requirements/made"
  fi
  for file in "$@"; do
    cmp -s "$file" "$venv/.requirements/$file" || missing+=" $file"
    files+=(-r "$file")
  done
  if [ -n "$missing" ]; then
    # Python compiles what it imports; all that is installed would take a minute.
    echo "installing$missing into $venv (once; this takes a few minutes)"
    "$venv/bin/python" -m pip install --quiet --no-compile --disable-pip-version-check "${files[@]}"
    cp "$@" "$venv/.requirements/"
  fi
  VIRTUAL_ENV=$(cd "$venv" && pwd)
  PATH=$VIRTUAL_ENV/bin:$PATH
  export PATH VIRTUAL_ENV PYTHONNOUSERSITE=1
  unset PYTHONPATH PYTHONHOME
}

# Prints the path of a Python of this version (such as 3.13): on PATH, among pyenv's, or among uv's.
# Fails if there is none. What pyenv puts on PATH may not start, so each one is tried.
find_python() {
  local python
  for python in "python$1" "${PYENV_ROOT:-${HOME-}/.pyenv}/versions/$1".*/bin/python \
    "$(uv python find --no-python-downloads "$1" 2>/dev/null)"; do
    if "$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
      command -v "$python"
      return
    fi
  done
  return 1
}

# Prints the path of a Chromium: the one that EXEDIT_CHROMIUM names, or one on PATH. Fails if there is none.
find_chromium() {
  local name
  for name in ${EXEDIT_CHROMIUM-} chromium chromium-browser google-chrome-stable google-chrome; do
    command -v "$name" && return
  done
  return 1
}
