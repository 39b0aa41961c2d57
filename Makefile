# Every target makes .venv and installs what it needs first.
.PHONY: help demo flan-small test test-all mutants some-mutants lint bench dist wheelhouse docs clean
LANGUAGE ?= en

help:
	@echo "make demo      teach a small model to turn home commands into JSON (LANGUAGE=en|fr|vi), about 10 minutes"
	@echo "make flan-small  does instruction tuning help a small T5 with a new task? pretraining included, about an hour"
	@echo "make test      all tests but the slow ones"
	@echo "make test-all  the slow ones too"
	@echo "make mutants   put bugs into the methods one by one, and see that the tests catch each"
	@echo "make some-mutants  eight of them, others every day, two minutes at most"
	@echo "make lint      ruff and mypy"
	@echo "make dist      the wheel, the source archive, checksums and a list of parts, tried in a new environment"
	@echo "make wheelhouse  dist/ and all that it needs, for a machine without a network"
	@echo "make docs      the documentation as a site, in site/"
	@echo "make bench     all benchmarks, one after the other; leave the machine alone meanwhile"

demo:
	@tools/venv.sh
	.venv/bin/microplane demo --lang $(LANGUAGE)

flan-small:
	@tools/venv.sh
	.venv/bin/python examples/flan_small/run.py

test:
	@tools/venv.sh test
	@tools/browser.sh
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile -m "not slow"

test-all:
	@tools/venv.sh test
	@tools/browser.sh
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n auto --dist loadfile

mutants:
	@tools/venv.sh test
	.venv/bin/python tools/mutants.py

some-mutants:
	@tools/venv.sh test
	.venv/bin/python tools/mutants.py --sample 8 --minutes 2

lint:
	@tools/venv.sh test lint
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

bench:
	@tools/venv.sh test
	.venv/bin/python benchmarks/all.py

docs:
	@tools/venv.sh docs
	.venv/bin/mkdocs build --quiet

dist:
	@tools/venv.sh
	@tools/dist.sh

wheelhouse: dist
	.venv/bin/python -m pip download --quiet --disable-pip-version-check -c constraints.txt -d wheelhouse dist/*.whl
	@echo "there: pip install --no-index --find-links wheelhouse microplane"

clean:
	rm -rf .venv .mypy_cache .ruff_cache .hypothesis dist wheelhouse site
