{{- define "apiary.fullname" -}}
{{- ternary .Release.Name (printf "%s-apiary" .Release.Name) (contains "apiary" .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "apiary.selector" -}}
app.kubernetes.io/name: apiary
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "apiary.labels" -}}
{{ include "apiary.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: apiary
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* What names an object that never changes: the first ten hex digits of the digest of its data. */ -}}
{{- define "apiary.digest" -}}
{{- . | toJson | sha256sum | trunc 10 -}}
{{- end }}

{{- /* dict "image" {repository, tag, digest}: a digest stands beside the tag, which then only tells people the version. */ -}}
{{- define "apiary.image" -}}
{{- printf "%s:%s" .repository .tag }}{{ with .digest }}@{{ . }}{{ end -}}
{{- end }}

{{- /* An immutable ConfigMap that outlives the release: pods that still run, or start again, find the one they were given.
       dict "root" $ "kind" policies|config|script "name" ... "data" {} */ -}}
{{- define "apiary.configmap" -}}
{{- $size := 0 }}
{{- range $key, $text := .data }}{{ $size = add $size (len $key) (len $text) }}{{ end }}
{{- if gt $size 1048576 }}
{{- fail (printf "ConfigMap %s would hold %d bytes, and the API server takes at most 1048576: give this ring fewer or smaller policies" .name $size) }}
{{- end -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "apiary.labels" .root | nindent 4 }}
    apiary.dev/kind: {{ .kind }}
  annotations:
    helm.sh/resource-policy: keep
immutable: true
data:
{{- range $key, $text := .data }}
  {{ $key }}: {{ $text | toJson }}
{{- end }}
{{- end }}

{{- define "apiary.script" -}}
{{- printf "%s-script-%s" (include "apiary.fullname" .) (include "apiary.digest" (dict "agent.sh" (.Files.Get "files/agent.sh"))) -}}
{{- end }}
