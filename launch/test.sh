#!/usr/bin/env bash
# Sets up an environment and runs the tests.
#
#   launch/test.sh [--core | --parity | --plan | --all | --browser | --prepare | --lint] [pytest arguments]
#
#   (nothing)   the suite
#   --core      what other versions of Python, jax and numpy might break, in a few minutes
#   --parity    the suite and the agreement tests against PyTorch, or the tests that you name
#   --plan      the tests of exedit.plan, with the TPU compiler
#   --all       the suite, the agreement tests and the tests with the TPU compiler
#   --browser   the page in a Chromium, which must be on the machine (EXEDIT_CHROMIUM may name it)
#   --prepare   the tests of launch/prepare_open_images.py, with Apache Beam
#   --lint      ruff and pyright instead of tests
#
# All of them except --prepare share .venv-test, which grows as they need. VENV names another
# environment, PYTHON the interpreter, TEST_JOBS the number of test processes (2).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
export JAX_PLATFORMS=cpu

# Installs the requirements of the kinds of tests that are named, and makes a missing one an error
# where the tests would otherwise be skipped.
prepare() {
  local files=(requirements.txt requirements-test.txt) kind
  for kind in "$@"; do files+=("requirements-$kind.txt"); done
  make_environment .venv-test "${files[@]}"
  for kind in "$@"; do
    case $kind in
      plan) export EXEDIT_PLAN=1 ;;
      parity)
        export EXEDIT_PARITY=1
        export EXEDIT_TORCHVISION=$VIRTUAL_ENV/torchvision # requirements-torchvision.txt says why
        if ! cmp -s requirements-torchvision.txt "$EXEDIT_TORCHVISION/requirements.txt"; then
          rm -rf "$EXEDIT_TORCHVISION"
          python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps \
            --target "$EXEDIT_TORCHVISION" -r requirements-torchvision.txt
          cp requirements-torchvision.txt "$EXEDIT_TORCHVISION/requirements.txt"
        fi
        ;;
    esac
  done
}

# Each file's tests run in one process, because they share fixtures. Most tests wait for compilers
# and for other processes, so two test processes use two cores well.
test_in_parallel() {
  python -m pytest -n "${TEST_JOBS:-2}" --dist loadfile "$@"
}

# The core: samplers, a training step to the number, meshes, checkpoints, and the doors.
CORE=(
  tests/diffusion/test_sampling.py
  tests/training/test_checkpoint.py tests/training/test_state.py tests/training/test_optimizer.py
  tests/training/test_sharding.py::test_any_mesh_gives_the_losses_of_one_device
  tests/training/test_sharding.py::test_the_compiler_adds_no_collectives_to_the_toy
  tests/planning/test_topology.py tests/input_pipeline/test_tfds_data.py
  tests/doors/test_golden.py tests/doors/test_edit_photo.py
  tests/doors/test_train.py::test_a_killed_and_stopped_run_ends_as_the_uninterrupted_one
  tests/doors/test_sample.py::test_outside_the_mask_the_output_holds_the_sources_bytes
  tests/doors/test_sample.py::test_at_the_trained_size_the_door_is_edit_in_a_notebook
)

case "${1:-}" in
  --core)
    shift
    prepare
    test_in_parallel "${CORE[@]}" "$@"
    ;;
  --lint)
    prepare lint
    ruff check .
    ruff format --check .
    pyright --pythonpath "$(command -v python)"
    ;;
  --prepare)
    shift
    make_environment .venv-prepare requirements-prepare.txt requirements-pytest.txt
    python -m pytest -o addopts= --noconftest tests/input_pipeline/test_prepare_open_images.py "$@"
    ;;
  --browser)
    shift
    if ! EXEDIT_CHROMIUM=$(find_chromium); then
      echo 'error: there is no Chromium: install it (Debian: apt-get install chromium), or name it in EXEDIT_CHROMIUM' >&2
      exit 2
    fi
    export EXEDIT_CHROMIUM
    prepare browser
    python -m pytest tests/browser "$@"
    ;;
  --plan)
    shift
    prepare plan
    python -m pytest tests/planning/test_plan.py "$@"
    ;;
  --parity)
    shift
    prepare parity
    test_in_parallel "$@"
    ;;
  --all)
    shift
    prepare parity plan
    test_in_parallel "$@"
    ;;
  *)
    prepare
    test_in_parallel --ignore=tests/parity "$@"
    ;;
esac
