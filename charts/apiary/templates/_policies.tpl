{{- /* What the chart has to know of a policy. dict "where" <for messages> "text" <TracingPolicy> "version" <of the agent>.
       JSON: name, namespace, mode (enforce, monitor, or observe where no action enforces), enforcing, overrides (a kprobe of it
       replaces what a function returns), unpinned (hooks whose links this version does not keep when it ends). */ -}}
{{- define "apiary.policy" -}}
{{- $where := .where }}
{{- $document := fromYaml .text }}
{{- with $document.Error }}{{ fail (printf "%s is not YAML: %s" $where .) }}{{ end }}
{{- if not (and (eq (toString $document.apiVersion) "cilium.io/v1alpha1") (has $document.kind (list "TracingPolicy" "TracingPolicyNamespaced"))) }}
{{- fail (printf "%s is no TracingPolicy: apiVersion %v, kind %v" $where $document.apiVersion $document.kind) }}
{{- end }}
{{- $name := dig "metadata" "name" "" $document }}
{{- if not (regexMatch "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$" $name) }}
{{- fail (printf "%s has metadata.name %q: the agent wants a DNS name" $where $name) }}
{{- end }}
{{- $spec := $document.spec | default dict }}
{{- $old := semverCompare "<1.8.0-0" .version }}
{{- if and $old (hasKey $spec "nodeSelector") }}
{{- fail (printf "%s has spec.nodeSelector, which agent %s does not know and would refuse: the ring already says on which nodes it loads" $where .version) }}
{{- end }}
{{- $enforcing := list "Sigkill" "Signal" "Override" "NotifyEnforcer" "Set" }}
{{- $enforces := false }}
{{- $overrides := false }}
{{- $unpinned := list }}
{{- $macros := dig "selectorsMacros" dict $spec }}
{{- range $section := list "kprobes" "tracepoints" "lsmhooks" "uprobes" "usdts" "fentries" }}
{{- range $hook := index $spec $section | default list }}
{{- range $selector := concat ($hook.selectors | default list) (values $macros) }}
{{- range $action := concat ($selector.matchActions | default list) ($selector.matchReturnActions | default list) }}
{{- if has $action.action $enforcing }}{{ $enforces = true }}{{ end }}
{{- if and (eq $section "kprobes") (eq $action.action "Override") }}{{ $overrides = true }}{{ end }}
{{- end }}
{{- end }}
{{- if and (eq $section "lsmhooks") $old }}{{ $unpinned = append $unpinned (printf "lsmhooks:%v" $hook.hook) }}{{ end }}
{{- if and (eq $section "tracepoints") $hook.raw }}{{ $unpinned = append $unpinned (printf "tracepoints:%v/%v" $hook.subsystem $hook.event) }}{{ end }}
{{- end }}
{{- end }}
{{- range $enforcer := $spec.enforcers | default list }}
{{- range $call := $enforcer.calls | default list }}
{{- if hasPrefix "security_" $call }}{{ $unpinned = append $unpinned (printf "enforcers:%v" $call) }}{{ end }}
{{- end }}
{{- end }}
{{- $mode := ternary "enforce" "observe" $enforces }}
{{- range $option := $spec.options | default list }}
{{- if and $enforces (eq (toString $option.name) "policy-mode") }}{{ $mode = toString $option.value }}{{ end }}
{{- end }}
{{- if not (has $mode (list "enforce" "monitor" "observe")) }}
{{- fail (printf "%s has policy-mode %q: the agent knows enforce and monitor" $where $mode) }}
{{- end }}
{{- dict "name" $name "namespace" (dig "metadata" "namespace" "" $document) "mode" $mode "enforcing" $enforces "overrides" $overrides "unpinned" ($unpinned | uniq) "document" $document | toJson }}
{{- end }}

{{- /* The rings as the templates need them, JSON {"rings": [...]}: name, version, image, daemonset, affinity (requirements of its
       nodes), config and policies ({name, data}), list (what "apiary.policy" says, by file), and from the values bundle, hold,
       maxSurge, customResources. */ -}}
{{- define "apiary.rings" -}}
{{- $root := . }}
{{- $fullname := include "apiary.fullname" . }}
{{- if not .Values.agents.enabled }}
{{- if .Values.adopt }}{{ fail "adopt takes over with agents of this chart, and agents.enabled is false" }}{{ end }}
{{- if not .Values.customResources.enabled }}{{ fail "agents.enabled is false: without customResources.enabled there is nothing to bring" }}{{ end }}
{{- end }}
{{- $names := list }}
{{- range .Values.rings }}
{{- if and .policies (not $root.Values.agents.enabled) }}{{ fail (printf "ring %s has policies as files, which agents of this chart read, and agents.enabled is false: give what observes as customResources" .name) }}{{ end }}
{{- if has .name $names }}{{ fail (printf "rings: %s is there twice" .name) }}{{ end }}
{{- $names = append $names .name }}
{{- end }}
{{- $own := dict "bpf-lib" "/var/lib/tetragon/" "enable-tracing-policy-crd" (.Values.customResources.enabled | toString) "gops-address" "" "health-server-address" "" "metrics-server" ":2112" "pprof-address" "" "procfs" "/procRoot" "release-pinned-bpf" "false" }}
{{- $defaults := dict "enable-k8s-api" "true" "enable-policy-filter" "true" "export-file-compress" "true" "export-file-max-backups" "5" "export-file-max-size-mb" "64" "export-file-perm" "600" "keep-sensors-on-exit" "true" "log-format" "json" }}
{{- $library := dict }}
{{- if .Values.library.enabled }}
{{- range $path, $text := .Files.Glob "files/policies/*.yaml" }}{{ $_ := set $library (base $path) (toString $text) }}{{ end }}
{{- end }}
{{- $rings := list }}
{{- range $index, $ring := .Values.rings }}
{{- if semverCompare "<1.6.0-0" $ring.agentVersion }}
{{- fail (printf "rings: %s has agentVersion %s, and this chart knows 1.6 and newer" $ring.name $ring.agentVersion) }}
{{- end }}
{{- if and $root.Values.image.digest (not $ring.imageDigest) (ne $ring.agentVersion (first $root.Values.rings).agentVersion) }}
{{- fail (printf "image.digest is the digest of one version, and ring %s has agentVersion %s: set rings[].imageDigest" $ring.name $ring.agentVersion) }}
{{- end }}
{{- $config := dict }}
{{- range $options := list $defaults $root.Values.options ($ring.options | default dict) $own }}
{{- range $option, $value := $options }}
{{- $_ := set $config $option (ternary ($value | toString) (printf "%v" $value) (kindIs "string" $value)) }}
{{- if kindIs "float64" $value }}{{ $_ := set $config $option ($value | int64 | toString) }}{{ end }}
{{- end }}
{{- end }}
{{- $files := $ring.policies | default dict }}
{{- if not $files }}{{ $files = $library }}{{ end }}
{{- $list := dict }}
{{- $keys := dict }}
{{- $late := list }}
{{- $lines := list }}
{{- range $file, $text := $files }}
{{- $policy := include "apiary.policy" (dict "where" (printf "ring %s, policy %s" $ring.name $file) "text" $text "version" $ring.agentVersion) | fromJson }}
{{- $key := printf "%s/%s" $policy.namespace $policy.name }}
{{- if hasKey $keys $key }}{{ fail (printf "ring %s: policies %s and %s have the same name %s" $ring.name (get $keys $key) $file $policy.name) }}{{ end }}
{{- $_ := set $keys $key $file }}
{{- $_ := set $list $file (omit $policy "document") }}
{{- $line := list $file $policy.name ($policy.namespace | default "-") $policy.mode (ternary "overrides" "-" $policy.overrides) | join "\t" | printf "%s\n" }}
{{- if $policy.unpinned }}{{ $lines = append $lines $line }}{{ else }}{{ $late = append $late $line }}{{ end }}
{{- end }}
{{- $policies := merge (dict "policies.tsv" (concat $lines $late | join "")) $files }}
{{- $last := eq (add1 $index | int) (len $names) }}
{{- $others := without $names $ring.name }}
{{- $affinity := list (dict "key" "kubernetes.io/os" "operator" "In" "values" (list "linux")) }}
{{- if not $last }}
{{- $affinity = append $affinity (dict "key" "apiary.dev/ring" "operator" "In" "values" (list $ring.name)) }}
{{- else if $others }}
{{- $affinity = append $affinity (dict "key" "apiary.dev/ring" "operator" "NotIn" "values" $others) }}
{{- end }}
{{- $rings = append $rings (dict
  "name" $ring.name
  "version" $ring.agentVersion
  "image" (include "apiary.image" (dict "repository" $root.Values.image.repository "tag" (printf "v%s" $ring.agentVersion) "digest" ($ring.imageDigest | default $root.Values.image.digest)))
  "daemonset" (printf "%s-%s" $fullname $ring.name)
  "affinity" (concat $affinity $root.Values.nodeRequirements)
  "config" (dict "name" (printf "%s-config-%s" $fullname (include "apiary.digest" $config)) "data" $config)
  "policies" (dict "name" (printf "%s-policies-%s" $fullname (include "apiary.digest" $policies)) "data" $policies)
  "list" $list
  "library" (and (not $ring.policies) (gt (len $files) 0))
  "bundle" ($ring.bundle | default "")
  "hold" ($ring.hold | default false)
  "maxSurge" ($ring.maxSurge | default 1)
  "customResources" ($ring.customResources | default dict)) }}
{{- end }}
{{- dict "rings" $rings | toJson }}
{{- end }}
