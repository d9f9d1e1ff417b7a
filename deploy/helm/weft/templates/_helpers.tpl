{{- /*
`weft install` renders these templates too, without helm: it understands include, define, if, else,
with, range over lists, and the functions and, or, not, eq, default, quote, toYaml, nindent, printf,
replace, semverCompare with ">=MAJOR.MINOR-0" and .Files.Get. A test refuses anything else, and compares both outputs.
*/ -}}
{{- define "weft.selector" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/component: control-plane
{{- end }}
{{- define "weft.labels" -}}
{{ include "weft.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: weft
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
{{- end }}
{{- define "weft.image" -}}
{{ .Values.image.registry }}/{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- define "weft.proxyImage" -}}
{{ .Values.proxy.image.registry | default .Values.image.registry }}/{{ .Values.proxy.image.repository }}:{{ .Values.proxy.image.tag | default .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
