# Copyright (c) Apiary contributors
# SPDX-License-Identifier: Apache-2.0

"""The agent's options by minor release: name, kind, first release, and the one that no longer has it.

Made by tools/flags.py from the agent's source (v1.4.1, v1.5.0, v1.6.1, v1.7.0, main).
"""

FIRST, LAST = "1.4", "1.8"
FLAGS = """
bpf-dir text 1.4 -
bpf-lib text 1.4 -
btf text 1.4 -
cgroup-rate text 1.4 -
cluster-name text 1.4 -
config-dir text 1.4 -
cpuprofile text 1.4 -
cri-endpoint text 1.4 -
data-cache-size int 1.4 -
debug bool 1.4 -
deleted-pod-cache-size int 1.8 -
disable-kprobe-multi bool 1.4 -
disable-process-cache bool 1.8 -
enable-ancestors list 1.5 -
enable-cgidmap bool 1.4 -
enable-cgidmap-debug bool 1.4 -
enable-cgtrackerid bool 1.4 -
enable-compatibility-syscall64-size-type bool 1.4 1.7
enable-cri bool 1.4 -
enable-deprecated-tracingpolicy-grpc bool 1.7 -
enable-event-metrics bool 1.8 -
enable-export-aggregation bool 1.4 -
enable-k8s-api bool 1.4 -
enable-msg-handling-latency bool 1.4 -
enable-pid-set-filter bool 1.4 -
enable-pod-annotations bool 1.5 -
enable-pod-info bool 1.4 -
enable-policy-filter bool 1.4 -
enable-policy-filter-cgroup-map bool 1.4 -
enable-policy-filter-debug bool 1.4 -
enable-process-ancestors bool 1.4 1.6
enable-process-cred bool 1.4 -
enable-process-environment-variables bool 1.7 -
enable-process-kprobe-ancestors bool 1.4 1.6
enable-process-lsm-ancestors bool 1.4 1.6
enable-process-ns bool 1.4 -
enable-process-tracepoint-ancestors bool 1.4 1.6
enable-process-uprobe-ancestors bool 1.4 1.6
enable-tracing-policy-crd bool 1.4 -
event-cache-retries int 1.4 -
event-cache-retry-delay int 1.4 -
event-queue-size uint 1.4 -
execve-map-entries int 1.4 -
execve-map-size text 1.4 -
export-aggregation-buffer-size uint 1.4 -
export-aggregation-window-size duration 1.4 -
export-allowlist text 1.4 -
export-denylist text 1.4 -
export-file-compress bool 1.4 -
export-file-max-backups int 1.4 -
export-file-max-size-mb int 1.4 -
export-file-perm text 1.4 -
export-file-rotation-interval duration 1.4 -
export-filename text 1.4 -
export-rate-limit int 1.4 -
expose-stack-addresses bool 1.4 -
field-filters text 1.4 -
filter-environment-variables list 1.7 -
force-large-progs bool 1.4 -
force-small-progs bool 1.4 -
generate-docs bool 1.4 -
gops-address text 1.4 -
health-server-address text 1.4 -
health-server-interval int 1.4 -
k8s-controlplane-retry int 1.6 -
k8s-kubeconfig-path text 1.4 -
keep-sensors-on-exit bool 1.4 -
kernel text 1.4 -
log-file text 1.7 -
log-format text 1.4 -
log-level text 1.4 -
memprofile text 1.4 -
metrics-label-filter text 1.4 -
metrics-server text 1.4 -
netns-dir text 1.4 -
parents-map-enabled bool 1.7 -
parents-map-entries int 1.7 -
parents-map-size text 1.7 -
persist-grpc-policies bool 1.8 -
persist-grpc-policies-dir text 1.8 -
pprof-address text 1.4 -
process-cache-gc-interval duration 1.4 -
process-cache-size int 1.4 -
procfs text 1.4 -
rb-queue-size text 1.4 -
rb-size text 1.4 -
rb-size-total text 1.4 -
redaction-filters text 1.4 -
release-pinned-bpf bool 1.4 -
retprobes-cache-size int 1.7 -
server-address text 1.4 -
server-tls-cert-file text 1.8 -
server-tls-client-ca-files list 1.8 -
server-tls-key-file text 1.8 -
server-tls-require-client-cert bool 1.8 -
sleepable-preload-size int 1.8 -
tracing-policy text 1.4 -
tracing-policy-dir text 1.4 -
use-perf-ring-buffer bool 1.6 -
username-metadata text 1.4 -
verbose int 1.4 -
"""
