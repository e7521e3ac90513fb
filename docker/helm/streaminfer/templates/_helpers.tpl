{{- define "streaminfer.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "streaminfer.fullname" -}}
{{- $name := include "streaminfer.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 52 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "streaminfer.selector" -}}
app.kubernetes.io/name: {{ include "streaminfer.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "streaminfer.labels" -}}
{{ include "streaminfer.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "streaminfer.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "streaminfer.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "streaminfer.image" -}}
{{- $tag := default (printf "%s%s" .Chart.AppVersion (ternary "-gpu" "" .Values.gpu.enabled)) .Values.image.tag }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository $tag }}
{{- end }}
{{- end }}

{{/* The configuration as text. */}}
{{- define "streaminfer.text" -}}
{{- if not .Values.config }}
{{- fail "config is missing: give the worker's YAML with --set-file config=worker.yaml" }}
{{- else if kindIs "string" .Values.config }}
{{- .Values.config }}
{{- else if gt (len (default dict .Values.config.pipelines)) 1 }}
{{- fail "config is a mapping with several pipelines, which loses the order in which they are tried: give it as text, with --set-file config=worker.yaml" }}
{{- else }}
{{- toYaml .Values.config }}
{{- end }}
{{- end }}

{{/* The configuration as a mapping, in YAML: what the templates read of it. */}}
{{- define "streaminfer.config" -}}
{{- $config := include "streaminfer.text" . | fromYaml }}
{{- if $config.Error }}
{{- fail (printf "config is not a YAML mapping: %s" $config.Error) }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{/* host:port of metrics.http; empty where the configuration has none. */}}
{{- define "streaminfer.http" -}}
{{- $config := include "streaminfer.config" . | fromYaml }}
{{- $http := default "" (default dict $config.metrics).http | toString }}
{{- if $http }}
{{- if not (regexMatch ":[1-9][0-9]*$" $http) }}
{{- fail (printf "config: metrics.http is %q, expected host:port with a port that is known, such as 0.0.0.0:9464; without metrics.http the chart sets that" $http) }}
{{- end }}
{{- if or (hasPrefix "127." $http) (hasPrefix "localhost:" $http) (hasPrefix "[::1]:" $http) }}
{{- fail (printf "config: metrics.http is %q, where no probe reaches it, expected 0.0.0.0:9464 or no metrics.http, which the chart then sets" $http) }}
{{- end }}
{{- end }}
{{- $http }}
{{- end }}

{{- define "streaminfer.port" -}}
{{- regexFind "[0-9]+$" (default "0.0.0.0:9464" (include "streaminfer.http" .)) }}
{{- end }}

{{- define "streaminfer.scheme" -}}
{{- $config := include "streaminfer.config" . | fromYaml }}
{{- ternary "HTTPS" "HTTP" (not (empty (default dict $config.metrics).tls)) }}
{{- end }}

{{/* limits.drain_s + limits.revoke_s + 10, with the worker's defaults of 25 and 10. */}}
{{- define "streaminfer.grace" -}}
{{- $given := .Values.terminationGracePeriodSeconds }}
{{- if not (kindIs "invalid" $given) }}
{{- int $given }}
{{- else }}
{{- $limits := default dict (include "streaminfer.config" . | fromYaml).limits }}
{{- $sum := 10.0 }}
{{- range $name, $default := dict "drain_s" 25.0 "revoke_s" 10.0 }}
{{- $value := ternary (get $limits $name) $default (hasKey $limits $name) }}
{{- if not (regexMatch "^[0-9.]+(e[+-]?[0-9]+)?$" (toString $value)) }}
{{- fail (printf "config: limits.%s is %v, expected a number, or terminationGracePeriodSeconds" $name $value) }}
{{- end }}
{{- $sum = addf $sum (float64 $value) }}
{{- end }}
{{- int (ceil $sum) }}
{{- end }}
{{- end }}

{{/* Fails where ${NAME} without a default is given by nothing. */}}
{{- define "streaminfer.variables" -}}
{{- if not .Values.envFrom }}
{{- range regexFindAll "\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}" (include "streaminfer.config" .) -1 | uniq }}
{{- $name := trimSuffix "}" (trimPrefix "${" .) }}
{{- if not (or (hasKey $.Values.env $name) (hasKey $.Values.secretEnv $name)) }}
{{- fail (printf "config names %s, which nothing gives: expected %s under secretEnv or env, or envFrom" . $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Each input topic once, as a JSON list. */}}
{{- define "streaminfer.topics" -}}
{{- $config := include "streaminfer.config" . | fromYaml }}
{{- $topics := list }}
{{- range $pipeline := ternary (values (default dict $config.pipelines)) (list $config) (hasKey $config "pipelines") }}
{{- $topics = concat $topics (default list (default dict $pipeline.input).topics) }}
{{- end }}
{{- toJson (sortAlpha $topics | uniq) }}
{{- end }}
