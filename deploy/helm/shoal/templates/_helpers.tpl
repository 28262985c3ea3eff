{{- define "shoal.labels" -}}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/instance: {{ .Release.Name }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "shoal.monitorLabels" -}}
{{ include "shoal.labels" . }}
{{- with .Values.monitoring.podMonitor.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* Cluster-scoped objects of an installation outside of shoal-system have its namespace in their names. */}}
{{- define "shoal.suffix" -}}
{{- if ne .Release.Namespace "shoal-system" }}-{{ .Release.Namespace }}{{ end }}
{{- end }}

{{- define "shoal.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "shoal.etcdImage" -}}
{{ .Values.etcd.embedded.image.repository }}:{{ .Values.etcd.embedded.image.tag }}
{{- end }}

{{- define "shoal.etcdEndpoints" -}}
{{- if .Values.etcd.embedded.enabled -}}
https://shoal-etcd.{{ .Release.Namespace }}.svc:2379
{{- else -}}
{{ join "," .Values.etcd.external.endpoints }}
{{- end }}
{{- end }}

{{- define "shoal.etcdSecret" -}}
{{- if .Values.etcd.embedded.enabled -}}
shoal-etcd-operator
{{- else -}}
{{ .Values.etcd.external.secretName }}
{{- end }}
{{- end }}
