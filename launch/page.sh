#!/usr/bin/env bash
# Sets up an environment, starts the page, and opens it in the browser.
#
#   launch/page.sh                                       the small weights of this repository
#   launch/page.sh --weights=Fantasy-Studio/Paint-by-Example
#   JAX=cuda13 launch/page.sh ...                        with an NVIDIA GPU
#
# All arguments are those of exedit.demo. The first start takes a few minutes, because it installs.
# Ctrl-C ends the server; pictures and results stay for the next start. VENV names the environment.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
make_environment .venv-page requirements.txt requirements-demo.txt
if [ -n "${JAX:-}" ]; then
  python -m pip install --quiet --disable-pip-version-check "jax[$JAX]"
fi

# Waits for the line with the address, shows it, and opens it if this machine has a browser.
open_page() {
  local line address opener
  while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in
      'open http'*)
        address=${line#open }
        for opener in xdg-open open; do
          if command -v "$opener" >/dev/null; then
            "$opener" "$address" >/dev/null 2>&1 || true
            break
          fi
        done
        ;;
    esac
  done
}

python -m exedit.demo "$@" > >(open_page)
