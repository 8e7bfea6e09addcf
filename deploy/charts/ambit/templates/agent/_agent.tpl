{{- /* Not privileged. SYS_ADMIN loads the programs (so BPF is not needed beside it) and enters pods' namespaces, which
       SYS_PTRACE finds by their processes; NET_ADMIN sets rules, routes and transparent sockets there; NET_RAW
       answers connects there once it is known what is to be answered. */ -}}
{{- define "ambit.agentSecurity" -}}
runAsUser: 0
runAsGroup: 0
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add: [NET_ADMIN, NET_RAW, SYS_ADMIN, SYS_PTRACE]
seccompProfile:
  {{- toYaml .Values.agent.seccompProfile | nindent 2 }}
{{- /* Runtimes' default profile forbids reading other processes' namespaces and writing sysctls. */}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}
appArmorProfile: {type: Unconfined}
{{- end }}
{{- with .Values.agent.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "ambit.nodePaths" -}}
- name: AMBIT_RUN_DIR
  value: {{ .Values.runDir }}
- name: AMBIT_BPF_ROOT
  value: /sys/fs/bpf
- name: AMBIT_CGROUP_ROOT
  value: /host/cgroup
{{- if .Values.cni.enabled }}
- name: AMBIT_CNI_BIN_DIR
  value: {{ .Values.cni.binDir }}
- name: AMBIT_CNI_CONF_DIR
  value: {{ .Values.cni.confDir }}
{{- end }}
{{- end }}

{{- define "ambit.nodeMounts" -}}
- name: run
  mountPath: {{ .Values.runDir }}
{{- /* Runtimes name namespaces by either path. */}}
- name: netns
  mountPath: /run/netns
  mountPropagation: HostToContainer
- name: netns
  mountPath: /var/run/netns
  mountPropagation: HostToContainer
{{- /* Programs are attached to its root, which takes no more than opening it. */}}
- name: cgroup
  mountPath: /host/cgroup
  readOnly: true
- name: bpf
  mountPath: /sys/fs/bpf
  mountPropagation: HostToContainer
{{- if .Values.cni.enabled }}
{{- /* As on the node: the plugin is told these paths, and runs there. */}}
- name: cni-bin
  mountPath: {{ .Values.cni.binDir }}
- name: cni-conf
  mountPath: {{ .Values.cni.confDir }}
{{- end }}
{{- end }}

{{- define "ambit.agentEnv" -}}
- name: AMBIT_TRUST_DOMAIN
  value: {{ .Values.trustDomain }}
{{- with .Values.trustDomainAliases }}
- name: AMBIT_TRUST_DOMAIN_ALIASES
  value: {{ join "," . }}
{{- end }}
{{- with .Values.trustBundles }}
{{- $bundles := list }}
{{- range $at, $bundle := . }}
{{- $bundles = append $bundles (printf "%s=/var/run/ambit/trust-bundles/%d.pem" $bundle.trustDomain $at) }}
{{- end }}
- name: AMBIT_TRUST_BUNDLE
  value: {{ join "," $bundles }}
{{- end }}
- name: AMBIT_CLUSTER_DOMAIN
  value: {{ .Values.clusterDomain }}
- name: AMBIT_CLUSTER_ID
  value: {{ .Values.clusterName | default .Values.issuer.istio.clusterID | quote }}
{{- if .Values.multicluster.enabled }}
- name: AMBIT_REMOTE_CLUSTERS
  value: {{ .Values.multicluster.namespace }}
- name: AMBIT_STATE_DIR
  value: {{ .Values.stateDir }}
- name: AMBIT_CLUSTER_LOCAL
  value: {{ prepend .Values.multicluster.clusterLocal .Release.Namespace | join "," | quote }}
{{- end }}
- name: AMBIT_ROOT_NAMESPACE
  value: {{ include "ambit.rootNamespace" . }}
- name: AMBIT_POLICY_HOLD
  value: {{ .Values.policyHold | default "24h" | quote }}
- name: AMBIT_DATAPLANE_LABEL
  value: {{ .Values.label }}
- name: AMBIT_SVID_TTL
  value: {{ .Values.svidTTL }}
- name: AMBIT_TRUSTED_PROXIES
  value: {{ .Values.trustedProxies | quote }}
- name: AMBIT_PATH_NORMALIZATION
  value: {{ .Values.pathNormalization }}
- name: AMBIT_POST_QUANTUM
  value: {{ .Values.postQuantum | quote }}
- name: AMBIT_LOCAL_TRAFFIC
  value: {{ .Values.localTraffic | default "join" }}
- name: AMBIT_KERNEL_TLS
  value: {{ .Values.kernelTls | default "off" | quote }}
- name: AMBIT_BUSY_POLL
  value: {{ .Values.busyPoll | default "auto" | quote }}
- name: AMBIT_BUNDLES
  value: {{ .Values.bundles | default "auto" | quote }}
- name: AMBIT_OUTBOUND_POLICY
  value: {{ .Values.egress.outboundPolicy }}
- name: AMBIT_OBSERVE_OUTBOUND
  value: {{ ternary "on" "off" .Values.egress.observe | quote }}
- name: AMBIT_DNS_CAPTURE
  value: {{ ternary "on" "off" .Values.egress.dnsCapture | quote }}
- name: AMBIT_VIP_RANGES
  value: {{ .Values.egress.vipRanges | quote }}
- name: AMBIT_DRAIN
  value: {{ .Values.drainSeconds }}s
- name: AMBIT_LOG
  value: {{ .Values.log.filter | quote }}
- name: AMBIT_LOG_FORMAT
  value: {{ .Values.log.format }}
{{- with .Values.extensionProviders }}
- name: AMBIT_EXTENSION_PROVIDERS
  value: {{ toJson . | quote }}
{{- end }}
- name: AMBIT_HTTP_TELEMETRY
  value: {{ .Values.httpTelemetry | quote }}
{{- with .Values.traces.endpoint }}
- name: AMBIT_TRACE_ENDPOINT
  value: {{ . | quote }}
- name: AMBIT_TRACE_SAMPLING
  value: {{ $.Values.traces.sampling | quote }}
{{- end }}
{{- with .Values.jwks }}
{{- if .caConfigMap }}
- name: AMBIT_JWKS_CA_FILE
  value: /var/run/ambit/jwks/roots.pem
{{- end }}
{{- with .blocked }}
- name: AMBIT_JWKS_BLOCKED
  value: {{ join "," . | quote }}
{{- end }}
- name: AMBIT_JWKS_REFRESH
  value: {{ .refresh | default "20m" | quote }}
{{- end }}
{{- with .Values.mapEntries }}
- name: AMBIT_MAP_ENTRIES
  value: {{ . | quote }}
{{- end }}
{{- with .Values.kubeletCgroup }}
- name: AMBIT_KUBELET_CGROUP
  value: /host/cgroup/{{ trimPrefix "/" . }}
{{- end }}
{{- if .Values.metrics.enabled }}
- name: AMBIT_METRICS_ADDR
  value: 0.0.0.0:{{ .Values.metrics.port }}
- name: AMBIT_METRICS_AUTH
  value: {{ include "ambit.metricsAuth" . }}
{{- end }}
{{- if .Values.cni.enabled }}
- name: AMBIT_CNI_ACCOUNT
  value: {{ .Release.Namespace }}/ambit-cni
{{- end }}
{{- if .Values.admin.enabled }}
- name: AMBIT_ADMIN_ADDR
  value: 127.0.0.1:{{ .Values.admin.port }}
{{- end }}
{{- end }}

{{- define "ambit.issuerEnv" -}}
{{- $issuer := .Values.issuer }}
{{- if has $issuer.kind (list "ambit" "istio") }}
- name: AMBIT_ISSUER
  value: {{ $issuer.kind }}
- name: AMBIT_CA_ADDRESS
  value: {{ $issuer.kind | eq "ambit" | ternary (printf "ambit-ca.%s.svc:15012" .Release.Namespace) $issuer.istio.address }}
{{- if eq $issuer.kind "ambit" }}
{{- /* Watched: a root that is withdrawn there is out at once, not when the kubelet has brought the file. */}}
- name: AMBIT_CA_ROOT_CONFIG_MAP
  value: {{ .Release.Namespace }}/{{ include "ambit.rootConfigMap" . }}
{{- else }}
- name: AMBIT_CA_ROOT_CONFIG_MAP
  value: {{ .Release.Namespace }}/{{ $issuer.istio.rootConfigMap }}
- name: AMBIT_CA_ROOT_KEY
  value: {{ $issuer.istio.rootKey }}
{{- end }}
- name: AMBIT_CA_TOKEN_FILE
  value: /var/run/ambit/issuer/token
{{- if eq $issuer.kind "istio" }}
{{- with $issuer.istio.serverName }}
- name: AMBIT_CA_SERVER_NAME
  value: {{ . }}
{{- end }}
{{- end }}
{{- else if eq $issuer.kind "vault" }}
- name: AMBIT_ISSUER
  value: vault
- name: AMBIT_VAULT_ADDR
  value: {{ required "issuer.vault.address is needed for issuer.kind vault" $issuer.vault.address }}
- name: AMBIT_VAULT_MOUNT
  value: {{ $issuer.vault.mount }}
- name: AMBIT_VAULT_ROLE
  value: {{ $issuer.vault.role }}
- name: AMBIT_VAULT_LOGIN_ROLE
  value: {{ $issuer.vault.loginRole }}
- name: AMBIT_VAULT_LOGIN_MOUNT
  value: {{ $issuer.vault.loginMount }}
- name: AMBIT_VAULT_JWT_FILE
  value: /var/run/ambit/issuer/token
{{- if and (hasPrefix "https:" $issuer.vault.address) (not $issuer.vault.caConfigMap) }}
{{- fail "issuer.vault.caConfigMap is needed for an https address" }}
{{- end }}
{{- if $issuer.vault.caConfigMap }}
- name: AMBIT_VAULT_CA_FILE
  value: /var/run/ambit/issuer/root-cert.pem
{{- end }}
{{- else if eq $issuer.kind "spire" }}
- name: AMBIT_ISSUER
  value: spire
- name: AMBIT_SPIRE_SOCKET
  value: /var/run/ambit/issuer/{{ $issuer.spire.socketName }}
{{- end }}
{{- end }}

{{- define "ambit.alsoTrustEnv" -}}
{{- with .Values.issuer.alsoTrust }}
{{- $files := list }}
{{- range $at, $_ := . }}
{{- $files = append $files (printf "/var/run/ambit/also-trust/%d.pem" $at) }}
{{- end }}
- name: AMBIT_ALSO_TRUST
  value: {{ join "," $files }}
{{- end }}
{{- end }}

{{- /* Token and roots in one folder. The agent does not start before its roots are there, so it never lacks them for the
       minute that the kubelet takes to bring a ConfigMap into a running pod. Those of a certificate service are watched then. */ -}}
{{- define "ambit.issuerVolume" -}}
{{- $issuer := .Values.issuer }}
{{- if eq $issuer.kind "spire" -}}
hostPath: {path: {{ $issuer.spire.socketDir }}, type: Directory}
{{- else -}}
projected:
  defaultMode: 0400
  sources:
    - serviceAccountToken:
        audience: {{ $issuer.kind | eq "vault" | ternary "vault" "istio-ca" }}
        expirationSeconds: 3600
        path: token
    {{- if eq $issuer.kind "ambit" }}
    - configMap:
        name: {{ include "ambit.rootConfigMap" . }}
        items: [{key: root-cert.pem, path: root-cert.pem}]
    {{- else if eq $issuer.kind "istio" }}
    - configMap:
        name: {{ $issuer.istio.rootConfigMap }}
        items: [{key: {{ $issuer.istio.rootKey }}, path: root-cert.pem}]
    {{- else if $issuer.vault.caConfigMap }}
    - configMap:
        name: {{ $issuer.vault.caConfigMap }}
        items: [{key: {{ $issuer.vault.caKey }}, path: root-cert.pem}]
    {{- end }}
{{- end }}
{{- end }}
