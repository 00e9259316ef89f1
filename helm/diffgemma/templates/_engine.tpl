{{/*
Engine key: everything that decides what is built. It names the Job and the folder on the volume, so that a changed
input makes both anew and the old engine stays until it is not needed.
*/}}
{{- define "diffgemma.engineKey" -}}
{{- $c := .Values.checkpoint -}}
{{- $where := dict
  "claim" (list $c.claim.name $c.claim.path)
  "image" (list $c.image.reference $c.image.path)
  "huggingFace" (list $c.huggingFace.repository)
-}}
{{- $inputs := dict
  "checkpoint" (list $c.source $c.revision (get $where $c.source))
  "target" .Values.gpu.target
  "products" (sortAlpha .Values.gpu.products)
  "arch" (include "diffgemma.arch" .)
  "precision" .Values.engine.precision
  "overrides" .Values.engine.overrides
  "useGpu" .Values.engine.build.useGpu
  "image" (default (include "diffgemma.image" .) .Values.image.digest)
-}}
{{- printf "%s-%s" (.Values.gpu.target | replace "_" "-") (toJson $inputs | sha256sum | trunc 12) -}}
{{- end }}

{{/* Folder of the engine as serving sees it. */}}
{{- define "diffgemma.enginePath" -}}
{{- $folder := eq .Values.engine.source "build" | ternary (include "diffgemma.engineKey" .) .Values.engine.path -}}
{{- printf "/engines/%s" $folder | trimSuffix "/" -}}
{{- end }}

{{/* Folder of the checkpoint as the build sees it. */}}
{{- define "diffgemma.checkpointPath" -}}
{{- $c := .Values.checkpoint -}}
{{- if eq $c.source "huggingFace" -}}
/engines/checkpoints/{{ $c.huggingFace.repository | replace "/" "--" }}-{{ $c.revision | replace "/" "-" }}
{{- else -}}
{{- printf "/checkpoint/%s" (get $c $c.source).path | trimSuffix "/" -}}
{{- end -}}
{{- end }}

{{- define "diffgemma.engineClaim" -}}
{{- default (printf "%s-engines" (include "diffgemma.fullname" .)) .Values.storage.existingClaim -}}
{{- end }}

{{/* Volume with engines. */}}
{{- define "diffgemma.engineVolume" -}}
- name: engines
  {{- if eq .Values.engine.source "image" }}
  image:
    reference: {{ .Values.engine.image | quote }}
    pullPolicy: {{ .Values.image.pullPolicy }}
  {{- else }}
  persistentVolumeClaim:
    claimName: {{ include "diffgemma.engineClaim" . }}
  {{- end }}
{{- end }}

{{- define "diffgemma.buildCommand" -}}
command: [diffgemma-engine]
args:
  - build
  - {{ printf "gpu=%s" .Values.gpu.target | quote }}
  - {{ printf "checkpoint=%s" (include "diffgemma.checkpointPath" .) | quote }}
  - {{ printf "out=/engines/%s" (include "diffgemma.engineKey" .) | quote }}
  - "unified=false"
  {{- with .Values.engine.precision }}
  - {{ printf "precision=%s" . | quote }}
  {{- end }}
  {{- range .Values.engine.overrides }}
  - {{ . | quote }}
  {{- end }}
{{- end }}
