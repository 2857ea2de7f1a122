# make demo   a staged rollout over a lab on this machine, and one that halts itself
# make test   all set-up and every check
# make check  the checks that need no root
# make bench  the measurements of tests/bench; those on hosts need root
# make test-real TETRAGON_RELEASE=FILE   the real agent of that release tarball, in a machine with a stock kernel
# make test-real-k8s TETRAGON_RELEASE=FILE   the same agent in pods of the chart, on one real node
# make clean  remove what these made

PYTHON ?= python3
BUILD := .build
LAB := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/apiary/hosts
export PYTHON

.PHONY: help demo test check bench test-real test-real-k8s clean
help:
	@sed -n 's/^# //p' Makefile

demo:
	@rm -rf $(BUILD)/demo && mkdir -p $(BUILD)/demo
	@echo "Setting up Ansible in $(BUILD)/venv-demo"
	@tools/venv $(BUILD)/venv-demo tools/demo.in
	@$(BUILD)/venv-demo/bin/ansible-galaxy collection build --force --output-path $(BUILD)/demo . >/dev/null
	@ANSIBLE_COLLECTIONS_PATH=$(BUILD)/demo/collections $(BUILD)/venv-demo/bin/ansible-galaxy collection install --force --offline --collections-path $(BUILD)/demo/collections $(BUILD)/demo/apiary-tetragon-*.tar.gz >/dev/null
	@PYTHONPATH=$(BUILD)/demo/collections $(BUILD)/venv-demo/bin/python tests/lab/demo.py $(BUILD)/demo $(BUILD)/demo/collections

test:
	@tools/test

check:
	@tools/test lint types docs sanity units lab kube

bench:
	@tools/venv $(BUILD)/venv-test tools/test.in
	@tools/tree $(BUILD)/collections
	@rm -rf $(BUILD)/bench $(BUILD)/bench-kube
	@PATH=$(abspath $(BUILD)/venv-test/bin):$$PATH PYTHONPATH=$(abspath $(BUILD)/collections) python tests/bench/bench.py $(BUILD)/bench $(abspath $(BUILD)/collections)
	@PATH=$(abspath $(BUILD)/venv-test/bin):$$PATH PYTHONPATH=$(abspath $(BUILD)/collections) python tests/bench/kube.py $(BUILD)/bench-kube
	@if [ "$$(id -u)" = 0 ]; then tests/lab/hosts/setup $(LAB) && \
	PATH=$(abspath $(BUILD)/venv-test/bin):$$PATH PYTHONPATH=$(abspath $(BUILD)/collections) python tests/bench/hosts.py $(BUILD)/bench/hosts $(abspath $(BUILD)/collections) $(LAB); \
	else echo "The measurements on hosts need root: sudo make bench"; fi

test-real:
	@tools/test real

test-real-k8s:
	@tools/test real-k8s

clean:
	rm -rf $(BUILD) .mypy_cache .ruff_cache .pytest_cache
