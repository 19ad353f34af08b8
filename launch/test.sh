#!/usr/bin/env bash
# Sets everything up and passes the tests.
#
#   launch/test.sh [--parity | --plan | --prepare | --lint] [pytest arguments]
#
# --parity adds PyTorch and diffusers and the tests of agreement with them. --plan has the TPU's
# compiler compile the tiny training step for four chips, and attention for all generations.
# --prepare tests launch/prepare_open_images.py with Apache Beam. --lint checks form and types
# instead. Each has a virtual environment of its own; VENV names another, PYTHON the interpreter to
# make it with.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
export JAX_PLATFORMS=cpu

case "${1:-}" in
  --lint)
    make_environment .venv-lint requirements.txt requirements-test.txt requirements-lint.txt
    ruff check .
    ruff format --check .
    pyright --pythonpath "$(command -v python)"
    ;;
  --prepare)
    shift
    make_environment .venv-prepare requirements-prepare.txt requirements-pytest.txt
    python -m pytest -o addopts= --noconftest tests/input_pipeline/test_prepare_open_images.py "$@"
    ;;
  --plan)
    shift
    make_environment .venv-plan requirements.txt requirements-test.txt requirements-plan.txt
    export EXEDIT_PLAN=1 # a test that cannot compile is then an error, not a skip
    python -m pytest tests/planning/test_plan.py "$@"
    ;;
  --parity)
    shift
    make_environment .venv-parity requirements.txt requirements-test.txt requirements-parity.txt
    beside=$(dirname "$(dirname "$(command -v python)")")/torchvision # see the file
    if ! cmp -s requirements-torchvision.txt "$beside/requirements.txt"; then
      rm -rf "$beside"
      python -m pip install --quiet --disable-pip-version-check --no-deps --target "$beside" \
        -r requirements-torchvision.txt
      cp requirements-torchvision.txt "$beside/requirements.txt"
    fi
    export EXEDIT_TORCHVISION=$beside
    export EXEDIT_PARITY=1 # an agreement test that cannot run is then an error, not a skip
    python -m pytest "$@"
    ;;
  *)
    make_environment .venv-test requirements.txt requirements-test.txt
    # Two workers, a file's tests all in one: most tests wait for compilers and for other processes.
    python -m pytest --ignore=tests/parity -n "${TEST_JOBS:-2}" --dist loadfile "$@"
    ;;
esac
