{{/* What a schema cannot say: values that fit only together. `{field, value, allowed, fix}` ends the rendering. */}}
{{- define "diffgemma.refuse" -}}
{{- fail (printf "\n\n%s: %s cannot be used; allowed: %s; fix: %s\n" .field (toJson .value) .allowed .fix) -}}
{{- end }}

{{- define "diffgemma.check" -}}
{{- $v := .Values -}}
{{- $s := $v.server -}}
{{- $least := add $s.preStopSeconds $s.drainTimeoutSeconds 5 -}}
{{- if le (int $s.terminationGracePeriodSeconds) (int $least) -}}
{{- include "diffgemma.refuse" (dict "field" "server.terminationGracePeriodSeconds" "value" $s.terminationGracePeriodSeconds
  "allowed" (printf "more than %d: preStopSeconds + drainTimeoutSeconds + 5, or the kubelet kills requests that are draining" $least)
  "fix" (printf "--set server.terminationGracePeriodSeconds=%d" (add $least 15))) -}}
{{- end -}}
{{- if and (include "diffgemma.usesGpu" .) (not $v.gpu.products) (not $v.nodeSelector) -}}
{{- include "diffgemma.refuse" (dict "field" "gpu.products" "value" $v.gpu.products
  "allowed" "at least one value of the node label nvidia.com/gpu.product, or a nodeSelector: an engine runs only on the GPU that it was built for"
  "fix" "kubectl get nodes -L nvidia.com/gpu.product, then --set 'gpu.products={NVIDIA-H100-80GB-HBM3}'") -}}
{{- end -}}
{{- include "diffgemma.checkEngine" . -}}
{{- include "diffgemma.checkScale" . -}}
{{- include "diffgemma.checkNetwork" . -}}
{{- end }}

{{- define "diffgemma.checkEngine" -}}
{{- $v := .Values -}}
{{- $c := $v.checkpoint -}}
{{- $images := or (eq $v.engine.source "image") (and (eq $v.engine.source "build") (eq $c.source "image")) -}}
{{- if and $images (semverCompare "<1.33.0-0" .Capabilities.KubeVersion.Version) -}}
{{- include "diffgemma.refuse" (dict "field" (eq $v.engine.source "image" | ternary "engine.source" "checkpoint.source") "value" "image"
  "allowed" (printf "a claim on Kubernetes %s: volumes from images came with 1.33" .Capabilities.KubeVersion.Version)
  "fix" "put the files on a claim: engine.source=prebuilt with storage.existingClaim, or checkpoint.source=claim") -}}
{{- end -}}
{{- if eq $v.engine.source "build" -}}
{{- if and (eq $c.source "claim") (not $c.claim.name) -}}
{{- include "diffgemma.refuse" (dict "field" "checkpoint.claim.name" "value" "" "allowed" "a PersistentVolumeClaim of this namespace with a checkpoint in Hugging Face layout"
  "fix" "--set checkpoint.claim.name=CLAIM; or checkpoint.source=huggingFace or image; or engine.source=prebuilt for an engine that is there already") -}}
{{- end -}}
{{- if and (eq $c.source "image") (not $c.image.reference) -}}
{{- include "diffgemma.refuse" (dict "field" "checkpoint.image.reference" "value" "" "allowed" "an OCI image with the checkpoint's files" "fix" "--set checkpoint.image.reference=REGISTRY/NAME@sha256:...") -}}
{{- end -}}
{{- if and (eq $c.source "huggingFace") (not (and $c.huggingFace.repository $c.revision)) -}}
{{- include "diffgemma.refuse" (dict "field" "checkpoint.huggingFace.repository" "value" (list $c.huggingFace.repository $c.revision) "allowed" "a repository of the Hub and its commit hash as checkpoint.revision"
  "fix" "--set checkpoint.huggingFace.repository=OWNER/NAME --set checkpoint.revision=COMMIT") -}}
{{- end -}}
{{- if eq $v.storage.accessMode "ReadOnlyMany" -}}
{{- include "diffgemma.refuse" (dict "field" "storage.accessMode" "value" $v.storage.accessMode "allowed" "ReadWriteOnce or ReadWriteMany with engine.source=build: the Job writes the engine"
  "fix" "--set storage.accessMode=ReadWriteMany, or engine.source=prebuilt") -}}
{{- end -}}
{{- end -}}
{{- if and (eq $v.engine.source "prebuilt") (not $v.storage.existingClaim) -}}
{{- include "diffgemma.refuse" (dict "field" "storage.existingClaim" "value" "" "allowed" "the claim that holds the engine, with engine.source=prebuilt" "fix" "--set storage.existingClaim=CLAIM --set engine.path=FOLDER") -}}
{{- end -}}
{{- if and (eq $v.engine.source "image") (not $v.engine.image) -}}
{{- include "diffgemma.refuse" (dict "field" "engine.image" "value" "" "allowed" "an OCI image that holds the engine, with engine.source=image" "fix" "--set engine.image=REGISTRY/NAME@sha256:...") -}}
{{- end -}}
{{- end }}

{{- define "diffgemma.checkScale" -}}
{{- $v := .Values -}}
{{- $a := $v.autoscaling -}}
{{- $scaled := ne $a.kind "none" -}}
{{- if and $scaled (gt (int $a.minReplicas) (int $a.maxReplicas)) -}}
{{- include "diffgemma.refuse" (dict "field" "autoscaling.minReplicas" "value" $a.minReplicas "allowed" (printf "at most autoscaling.maxReplicas, %d" (int $a.maxReplicas)) "fix" (printf "--set autoscaling.maxReplicas=%d" (int $a.minReplicas))) -}}
{{- end -}}
{{- $most := int ($scaled | ternary $a.maxReplicas $v.server.replicas) -}}
{{- if and (ne $v.engine.source "image") (eq $v.storage.accessMode "ReadWriteOnce") (gt $most 1) -}}
{{- include "diffgemma.refuse" (dict "field" "storage.accessMode" "value" "ReadWriteOnce" "allowed" (printf "ReadWriteMany for up to %d pods: a ReadWriteOnce volume is attached to one node, and pods on any other would wait for it forever" $most)
  "fix" "--set storage.accessMode=ReadWriteMany --set storage.storageClassName=CLASS (NFS, CephFS, Filestore, EFS, ...), or one replica without autoscaling, or engine.source=image") -}}
{{- end -}}
{{- if and (eq (toString $v.server.maxSurge) "0") (eq (toString $v.server.maxUnavailable) "0") -}}
{{- include "diffgemma.refuse" (dict "field" "server.maxUnavailable" "value" 0 "allowed" "more than 0 while server.maxSurge is 0: nothing could ever be replaced" "fix" "--set server.maxUnavailable=1") -}}
{{- end -}}
{{- end }}

{{- define "diffgemma.checkNetwork" -}}
{{- $v := .Values -}}
{{- if and $v.tls.enabled (not $v.tls.secretName) -}}
{{- include "diffgemma.refuse" (dict "field" "tls.secretName" "value" "" "allowed" "a Secret with tls.crt and tls.key" "fix" "kubectl create secret tls NAME --cert FILE --key FILE, then --set tls.secretName=NAME") -}}
{{- end -}}
{{- if regexMatch ":4317(/|$)" $v.otel.endpoint -}}
{{- include "diffgemma.refuse" (dict "field" "otel.endpoint" "value" $v.otel.endpoint "allowed" "OTLP over HTTP, usually port 4318: 4317 is OTLP over gRPC" "fix" (printf "--set otel.endpoint=%s" (replace ":4317" ":4318" $v.otel.endpoint))) -}}
{{- end -}}
{{- if $v.ingress.enabled -}}
{{- if and (eq $v.ingress.port "openai") (not $v.server.openai) -}}
{{- include "diffgemma.refuse" (dict "field" "ingress.port" "value" "openai" "allowed" "grpc while server.openai is off" "fix" "--set server.openai=true") -}}
{{- end -}}
{{- if not $v.ingress.host -}}
{{- include "diffgemma.refuse" (dict "field" "ingress.host" "value" "" "allowed" "a host name" "fix" "--set ingress.host=NAME") -}}
{{- end -}}
{{- end -}}
{{- if and $v.grpcRoute.enabled (not $v.grpcRoute.parentRefs) -}}
{{- include "diffgemma.refuse" (dict "field" "grpcRoute.parentRefs" "value" $v.grpcRoute.parentRefs "allowed" "at least one Gateway" "fix" "--set 'grpcRoute.parentRefs[0].name=GATEWAY'") -}}
{{- end -}}
{{- if and $v.auth.existingSecret (not $v.server.openai) -}}
{{- include "diffgemma.refuse" (dict "field" "auth.existingSecret" "value" $v.auth.existingSecret "allowed" "with server.openai: gRPC knows no keys" "fix" "--set server.openai=true") -}}
{{- end -}}
{{- if not (include "diffgemma.grpcOpen" .) -}}
{{- range $field, $used := dict "grpcRoute.enabled" $v.grpcRoute.enabled "ingress.port" (and $v.ingress.enabled (eq $v.ingress.port "grpc")) -}}
{{- if $used -}}
{{- include "diffgemma.refuse" (dict "field" $field "value" (eq $field "ingress.port" | ternary "grpc" true) "allowed" "OpenAI's API with auth.existingSecret: gRPC knows no keys and stays in the pod" "fix" "--set tls.enabled=true --set tls.clientCa=true, or lead to openai") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and $v.server.corsOrigins (not $v.server.openai) -}}
{{- include "diffgemma.refuse" (dict "field" "server.corsOrigins" "value" $v.server.corsOrigins "allowed" "with server.openai: no other endpoint is asked by browsers" "fix" "--set server.openai=true") -}}
{{- end -}}
{{- include "diffgemma.checkExposure" . -}}
{{- end }}

{{/* What leads out of the cluster asks who is there, as the launcher does beyond loopback. */}}
{{- define "diffgemma.checkExposure" -}}
{{- $v := .Values -}}
{{- $closed := or $v.auth.existingSecret (include "diffgemma.asksCertificates" .) -}}
{{- if and $closed $v.auth.insecure -}}
{{- include "diffgemma.refuse" (dict "field" "auth.insecure" "value" true "allowed" "false with auth.existingSecret or tls.clientCa, which ask who is there" "fix" "leave it out") -}}
{{- end -}}
{{- if not (or $closed $v.auth.insecure) -}}
{{- $ways := dict "ingress.enabled" $v.ingress.enabled "grpcRoute.enabled" $v.grpcRoute.enabled "service.type" (ne $v.service.type "ClusterIP") -}}
{{- range $field, $used := $ways -}}
{{- if $used -}}
{{- include "diffgemma.refuse" (dict "field" $field "value" (eq $field "service.type" | ternary $v.service.type true)
  "allowed" "inside the cluster, or with auth.existingSecret or tls.clientCa: else anybody who reaches it may ask"
  "fix" "--set server.openai=true --set auth.existingSecret=SECRET (its lines: diffgemma-serve --new-key NAME), or --set auth.insecure=true") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
