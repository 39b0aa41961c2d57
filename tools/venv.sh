#!/usr/bin/env bash
# Make .venv with Microplane and the given extras, once: tools/venv.sh [test] [lint]
# Needs a Python of at least 3.11; where there is none, and this is root on Debian or Ubuntu, it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=.venv

find_python() {
  for name in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
    if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$name"
      return
    fi
  done
}

apt_install() {
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq "$@" >/dev/null
  else
    return 1
  fi
}

if [ ! -x "$venv/bin/python" ]; then
  python=$(find_python)
  if [ -z "$python" ]; then
    echo "no Python of at least 3.11 here; trying to install one"
    apt_install python3 python3-venv || { echo "install Python 3.11 or newer, then try again" >&2; exit 1; }
    python=$(find_python)
  fi
  "$python" -m venv "$venv" 2>/dev/null || { apt_install python3-venv && "$python" -m venv --clear "$venv"; } ||
    { echo "$python cannot make a virtual environment; install its venv package (python3-venv)" >&2; exit 1; }
fi

# What was installed is known by the files that decide it; nothing is done when they have not changed.
extras=$(IFS=,; echo "$*")
stamp="$venv/.installed-${extras:-plain}"
if [ ! -f "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
  echo "installing Microplane${extras:+ with $extras} into $venv ..."
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extras:+[$extras]}"
  touch "$stamp"
fi
