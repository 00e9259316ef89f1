{{/* What every pod of the chart has in common. */}}
{{- define "diffgemma.podBase" -}}
serviceAccountName: {{ include "diffgemma.serviceAccountName" . }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- range $field := list "runAsUser" "runAsGroup" "fsGroup" }}
  {{- $id := get $.Values.podSecurity $field }}
  {{- if not (kindIs "invalid" $id) }}
  {{- if hasKey $.Values.podSecurity $field }}
  {{ $field }}: {{ int64 $id }}
  {{- end }}
  {{- end }}
  {{- end }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Nodes that may run it: those of the GPU; with a ReadWriteOnce volume, the node that the volume is on. */}}
{{- define "diffgemma.placement" -}}
{{- $once := and (ne .Values.engine.source "image") (eq .Values.storage.accessMode "ReadWriteOnce") -}}
{{ include "diffgemma.nodeSelector" . }}
{{- $products := and (include "diffgemma.usesGpu" .) .Values.gpu.products }}
{{- if or $products $once }}
affinity:
  {{- if $products }}
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: nvidia.com/gpu.product
              operator: In
              values:
                {{- toYaml .Values.gpu.products | nindent 16 }}
  {{- end }}
  {{- if $once }}
  {{- /* A pod that matches its own term may be the first; the build and serving then meet on one node. */}}
  podAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      - topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels:
            diffgemma/engine-volume: {{ include "diffgemma.engineClaim" . | trunc 63 | trimSuffix "-" }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "diffgemma.nodeSelector" -}}
{{- $arch := include "diffgemma.arch" . -}}
{{- $selector := .Values.nodeSelector -}}
{{- if $arch -}}
{{- $selector = merge (dict "kubernetes.io/arch" $arch) $selector -}}
{{- end -}}
{{- with $selector -}}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Label that pods with the same ReadWriteOnce volume find each other by. */}}
{{- define "diffgemma.volumeLabel" -}}
{{- if ne .Values.engine.source "image" -}}
diffgemma/engine-volume: {{ include "diffgemma.engineClaim" . | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "diffgemma.container" -}}
image: {{ include "diffgemma.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Everything that is written goes to volumes; nothing is looked up online. */}}
{{- define "diffgemma.env" -}}
- name: HOME
  value: /cache
- name: USER # an ID that the image does not know (OpenShift) has no name otherwise
  value: diffgemma
- name: TMPDIR
  value: /tmp
- name: XDG_CACHE_HOME
  value: /cache
- name: TRITON_CACHE_DIR
  value: /cache/triton
- name: TORCHINDUCTOR_CACHE_DIR
  value: /cache/inductor
- name: CUDA_CACHE_PATH
  value: /cache/cuda
{{- end }}

{{/* Without a GPU of its own a container must not see the node's: images that ask for all of them would. */}}
{{- define "diffgemma.noGpuEnv" -}}
- name: NVIDIA_VISIBLE_DEVICES
  value: void
{{- end }}

{{/* `{resources, gpu}` -> a container's resources. */}}
{{- define "diffgemma.resources" -}}
{{- $limits := deepCopy (default dict .resources.limits) -}}
{{- if .gpu -}}
{{- $_ := set $limits .gpu.resource .gpu.count -}}
{{- end -}}
{{- range $kind, $entries := dict "requests" (default dict .resources.requests) "limits" $limits }}
{{- with $entries }}
{{ $kind }}:
  {{- range $name, $quantity := . }}
  {{ $name }}: {{ $quantity | toString | quote }}
  {{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "diffgemma.scratchMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: cache, mountPath: /cache}
- {name: shm, mountPath: /dev/shm}
{{- end }}

{{- define "diffgemma.scratchVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.server.tmpSize | quote }}}
- name: cache
  emptyDir: {sizeLimit: {{ .Values.server.cacheSize | quote }}}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.server.shmSize | quote }}}
{{- end }}

{{- define "diffgemma.tlsVolume" -}}
{{- if .Values.tls.enabled -}}
- name: tls
  secret:
    secretName: {{ .Values.tls.secretName }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{/* Host and port of the gRPC endpoint inside the cluster, and what the client needs for TLS. */}}
{{- define "diffgemma.clientArgs" -}}
- --url
- {{ include "diffgemma.fullname" . }}.{{ .Release.Namespace }}.svc:8001
{{- if .Values.tls.enabled }}
- --tls-ca
- /tls/{{ .Values.tls.caKey }}
{{- if .Values.tls.clientCa }}
- --tls-cert
- /tls/tls.crt
- --tls-key
- /tls/tls.key
{{- end }}
{{- end }}
{{- end }}

{{/* Clients of gRPC and OpenAI's API show a certificate. */}}
{{- define "diffgemma.asksCertificates" -}}
{{- if and .Values.tls.enabled .Values.tls.clientCa }}true{{ end -}}
{{- end }}

{{/* gRPC knows no keys: with them alone it stays in the pod. */}}
{{- define "diffgemma.grpcOpen" -}}
{{- if or (not .Values.auth.existingSecret) (include "diffgemma.asksCertificates" .) }}true{{ end -}}
{{- end }}
