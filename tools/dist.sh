#!/usr/bin/env bash
# Make dist/: the source archive, the wheel that is built from it, SHA256SUMS, and what an installation holds as a
# CycloneDX list (sbom.json). Then use the wheel in a new environment, away from this repository.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
pip() { "$work/$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}"; }

.venv/bin/python -m venv "$work/tools"
pip tools build==1.6.1 cyclonedx-bom==7.5.0
rm -rf dist
git archive --prefix=source/ HEAD | tar -x -C "$work"  # what is committed, and nothing else
"$work/tools/bin/python" -m build --outdir dist "$work/source" >/dev/null

.venv/bin/python -m venv "$work/user"
pip user -c constraints.txt dist/*.whl
"$work/tools/bin/cyclonedx-py" environment "$work/user" --pyproject pyproject.toml --output-reproducible -o dist/sbom.json
(cd dist && sha256sum -- * >SHA256SUMS)

cd "$work"
user/bin/microplane version
user/bin/microplane demo --rows 100 --steps 20 --set eval.rows=20
ls -l "$OLDPWD/dist"
