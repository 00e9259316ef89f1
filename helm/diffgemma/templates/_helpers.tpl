{{- define "diffgemma.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{/* Short enough that the longest suffix fits into a label. */}}
{{- define "diffgemma.fullname" -}}
{{- $name := include "diffgemma.name" . -}}
{{- $full := default (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) .Values.fullnameOverride -}}
{{- $full | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "diffgemma.selector" -}}
app.kubernetes.io/name: {{ include "diffgemma.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "diffgemma.labels" -}}
{{ include "diffgemma.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Without versions: a new chart alone is no reason to start every pod again. */}}
{{- define "diffgemma.podLabels" -}}
{{ include "diffgemma.selector" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "diffgemma.image" -}}
{{- $image := .Values.image -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ default .Chart.AppVersion $image.tag }}
{{- end -}}
{{- end }}

{{- define "diffgemma.serviceAccountName" -}}
{{- default (.Values.serviceAccount.create | ternary (include "diffgemma.fullname" .) "default") .Values.serviceAccount.name -}}
{{- end }}

{{- define "diffgemma.usesGpu" -}}
{{- if ne .Values.gpu.target "cpu" }}true{{ end -}}
{{- end }}

{{- define "diffgemma.arch" -}}
{{- $usual := dict "cpu" "" "dgx_spark" "arm64" -}}
{{- default (hasKey $usual .Values.gpu.target | ternary (get $usual .Values.gpu.target) "amd64") .Values.gpu.arch -}}
{{- end }}

{{/* Seconds that a pod may take from being scheduled to being ready. */}}
{{- define "diffgemma.progressSeconds" -}}
{{- add (eq .Values.engine.source "build" | ternary .Values.engine.waitTimeoutSeconds 0) .Values.server.startTimeoutSeconds 900 -}}
{{- end }}
