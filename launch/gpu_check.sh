#!/usr/bin/env bash
# One call, without a network and in at most eight minutes: what a GPU gives.
# launch/gpu_check.py has the parts and the flags; `launch/gpu_check.sh --help`.
#
# PYTHON is the Python to take (python3). Packages that it lacks are installed from
# .whl/*.whl, where that folder lies in the checkout, into a folder of their own.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly PYTHON=${PYTHON:-python3}
# What the main job, a step and the tests import.
readonly NEEDED='jax flax optax orbax.checkpoint numpy scipy etils ml_collections
  tensorboardX tensorflow_datasets array_record tree immutabledict promise
  importlib_resources tensorflow_metadata google.protobuf termcolor toml wrapt psutil
  six requests pyarrow absl sentencepiece tokenizers safetensors jinja2 tqdm pytest hypothesis'

missing() { # the needed packages that Python does not find, on one line
  # shellcheck disable=SC2086  # names, a word each
  "$PYTHON" - $NEEDED <<'PROGRAM'
import importlib.util
import sys


def there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False


print(*(name for name in sys.argv[1:] if not there(name)))
PROGRAM
}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
lacking=$(missing)
if [[ -n $lacking ]] && compgen -G '.whl/*.whl' >/dev/null; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir \
    --target "$scratch/site" .whl/*.whl || true # what is lacking is said below
  PYTHONPATH="$PWD:$scratch/site:${PYTHONPATH#"$PWD"}"
  lacking=$(missing)
fi
if [[ -n $lacking ]]; then
  printf 'error: %s lacks %s; install them, or carry their wheels in .whl/ %s\n' \
    "$PYTHON" "${lacking// /, }" '(launch/GPU.md)' >&2
  exit 2
fi
"$PYTHON" launch/gpu_check.py "$@"
