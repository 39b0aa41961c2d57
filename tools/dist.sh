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
pip user -c constraints.txt "$(echo dist/*.whl)[serve]"
"$work/tools/bin/cyclonedx-py" environment "$work/user" --pyproject pyproject.toml --output-reproducible -o dist/sbom.json
(cd dist && sha256sum -- * >SHA256SUMS)

cd "$work"
user/bin/microplane version
user/bin/microplane demo --rows 100 --steps 20 --set eval.rows=20 --set name=tried
user/bin/python - <<'PYTHON'
import json
import subprocess
from urllib.request import Request, urlopen

command = ["user/bin/microplane", "serve", "runs/tried", "--port", "0"]
with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
    try:
        url = next(line.split()[0] for line in server.stderr if line.startswith("http://"))
        body = {"model": "tried", "messages": [{"role": "user", "content": "turn on the light"}], "max_tokens": 20}
        asked = Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        print("served:", json.load(urlopen(asked))["choices"][0]["message"]["content"])
    finally:
        server.terminate()
assert server.returncode == 0, server.returncode
PYTHON
ls -l "$OLDPWD/dist"
