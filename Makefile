# Two commands matter: `make book` renders the book, `make test` checks everything.
# Both start from nothing but make and Python 3.11 or newer, and keep all they install in .venv.

python := .venv/bin/python
parts := lint types book pytest nbval

# A contributor's own settings of Python, matplotlib and IPython change no figure and no test.
unexport PYTHONPATH MPLBACKEND
# Networks this small gain nothing from a second core, and on a busy machine wait for it at every step.
export OMP_NUM_THREADS := 1
export IPYTHONDIR := $(CURDIR)/.venv/ipython
export MPLCONFIGDIR := $(CURDIR)/.venv/matplotlib

.PHONY: help test execute mutants bench gpu repository clean $(parts)

help:
	@echo "make book               render the book from its stored outputs; prints the file to open"
	@echo "make test               everything below, and the book:"
	@echo "  make lint               style and format, notebooks included (ruff)"
	@echo "  make types              types of vaelib (mypy)"
	@echo "  make pytest             tests of vaelib, of the notebooks and of the rendered pages"
	@echo "  make nbval              every notebook still runs, cell by cell"
	@echo "make execute            run all notebooks again, in place; NB=book/… for one of them"
	@echo "make mutants            breaks formulas of vaelib one by one: which do its tests not notice?"
	@echo "make bench              speed against the limit and against peers, some minutes on a quiet machine"
	@echo "make gpu SECONDS=900    benchmarks, tests and long runs on an NVIDIA GPU; no .venv, PYTHON=… has torch"
	@echo "make repository URL=…   set the repository's address wherever it stands"
	@echo "make clean              delete what was built (.venv stays: delete it to install anew)"

# The stamp holds the folder's path: an environment that was moved has to be set up again.
ifneq ($(shell cat .venv/.installed 2>/dev/null),$(CURDIR))
$(shell rm -f .venv/.installed)
endif
.venv/.installed: pyproject.toml constraints.txt
	@sh tools/install.sh

# Sphinx does not look again at a page that has not changed, so after a build with warnings a second
# one would pass: what it remembers is dropped, and it fails again until the cause is gone.
book: .venv/.installed _build/.assets
	$(python) .venv/bin/jupyter-book build -W -n --keep-going . || { rm -rf _build/.doctrees; exit 1; }
	@$(python) tools/pages.py

# Sphinx copies styles, scripts and logos only along with a page that changed, and keeps pages that
# left the table of contents: when one of these changes, the build starts anew.
_build/.assets: _toc.yml $(wildcard _static/* book/images/* tools/book_*.py)
	@rm -rf _build; mkdir _build; touch $@

lint: .venv/.installed
	$(python) -m ruff check
	$(python) -m ruff format --check

types: .venv/.installed
	$(python) -m mypy

pytest: .venv/.installed
	$(python) -m pytest

# Lax: a cell must run and its asserts must hold; pictures and timings may differ. The graphics card
# is hidden since the stored outputs are a CPU's, and the timeout is there to fail a hanging cell.
nbval: .venv/.installed
	CUDA_VISIBLE_DEVICES= $(python) -m pytest --nbval-lax --nbval-current-env \
	    --nbval-cell-timeout=300 --durations=10 book

# All parts run even when one fails, so that one round shows everything there is to mend. The two
# long ones run side by side, each on a core of its own; nbval's output follows pytest's.
test: .venv/.installed
	@times=$(CURDIR)/.venv/times; log=$(CURDIR)/.venv/nbval.log; : > $$times; \
	trap 'trap - INT TERM; kill 0' INT TERM; \
	run() { \
	    start=$$(date +%s); outcome=passed; \
	    $(MAKE) --no-print-directory $$1 || outcome=FAILED; \
	    echo "  $$1 $$outcome in $$(($$(date +%s) - start)) s" >> $$times; \
	}; \
	for part in lint types book; do run $$part; done; \
	run nbval > $$log 2>&1 & \
	run pytest; wait; cat $$log; \
	printf "\nmake test:\n"; cat $$times; ! grep -q FAILED $$times

execute: .venv/.installed
	@$(python) tools/execute.py $(NB)

mutants: .venv/.installed
	@$(python) tools/mutants.py $(NAMES)

# The peers are no dependency of the book, and are installed on the way.
bench: .venv/.installed
	$(python) -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --editable '.[bench]'
	$(python) benchmarks/bench.py

# With the Python at hand: a machine with a GPU has a torch that fits it.
SECONDS := 900
DEVICE := cuda
BUDGET := 1
gpu:
	$(or $(PYTHON),python3) tools/gpu.py --deadline $(SECONDS) --device $(DEVICE) --budget $(BUDGET)

repository: .venv/.installed
	@$(python) tools/repository.py '$(URL)'

clean:
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache
