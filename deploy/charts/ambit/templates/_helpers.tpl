{{- define "ambit.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "ambit.labels" -}}
app.kubernetes.io/name: ambit
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "ambit.agentSelector" -}}
app.kubernetes.io/name: ambit
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: agent
{{- end }}

{{- define "ambit.caSelector" -}}
app.kubernetes.io/name: ambit
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: ca
{{- end }}

{{- define "ambit.rootNamespace" -}}
{{ .Values.rootNamespace | default (eq .Values.issuer.kind "istio" | ternary "istio-system" .Release.Namespace) }}
{{- end }}

{{- /* The file that pods of the CA's clients mount; the CA writes the ConfigMap. */ -}}
{{- define "ambit.rootConfigMap" -}}
ambit-ca-root
{{- end }}

{{- /* With a default here as well: helm upgrade --reuse-values knows no values that are new. */ -}}
{{- define "ambit.metricsAuth" -}}
{{ .Values.metrics.auth | default "none" }}
{{- end }}

{{- /* The CA's pods are never in the mesh: agents ask them for the certificates that the mesh needs. */ -}}
{{- define "ambit.optedOut" -}}
{{- $parts := splitList "=" .Values.label }}
{{- $key := first $parts }}
{{- if hasKey .Values.ca.podLabels $key }}
{{- fail (printf "ca.podLabels may not have %s: the CA's pods stay out of the mesh, which depends on them" $key) }}
{{- end }}
{{- $key }}: {{ splitList "," (last $parts) | rest | first | default "disabled" | quote }}
{{- end }}

{{- define "ambit.caWanted" -}}
{{- if or (eq .Values.issuer.kind "ambit") .Values.ca.keep }}true{{ end }}
{{- end }}

{{- /* A duration such as 1h30m, in seconds. */ -}}
{{- define "ambit.seconds" -}}
{{- $units := dict "s" 1 "m" 60 "h" 3600 "d" 86400 }}
{{- $seconds := 0 }}
{{- range regexFindAll "[0-9]+[smhd]" . -1 }}
{{- $seconds = add $seconds (mul (regexFind "[0-9]+" . | int64) (get $units (regexFind "[smhd]" .))) }}
{{- end }}
{{- $seconds }}
{{- end }}

{{- define "ambit.healthPort" -}}
{{ .Values.ca.healthPort | default 15021 }}
{{- end }}

{{- define "ambit.metricsGuarded" -}}
{{- if and .Values.metrics.enabled (eq (include "ambit.metricsAuth" .) "token") }}true{{ end }}
{{- end }}

{{- /* What asking who may read metrics takes. */ -}}
{{- define "ambit.metricsRules" -}}
{{- if include "ambit.metricsGuarded" . }}
# Who scrapes, and whether RBAC lets them.
- apiGroups: [authentication.k8s.io]
  resources: [tokenreviews]
  verbs: [create]
- apiGroups: [authorization.k8s.io]
  resources: [subjectaccessreviews]
  verbs: [create]
{{- end }}
{{- end }}

{{- define "ambit.scrapeAnnotations" -}}
{{- if .Values.metrics.enabled }}
prometheus.io/scrape: 'true'
prometheus.io/port: {{ .Values.metrics.port | quote }}
{{- if include "ambit.metricsGuarded" . }}
prometheus.io/scheme: https
{{- end }}
{{- end }}
{{- end }}

{{- define "ambit.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}
