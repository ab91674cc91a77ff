"""Fields of the served kinds: data files, read by :mod:`machineplane.kubeapi.fields`.

The names, numbers and merge keys are facts of Kubernetes' published API (``k8s.io/api``); a line gives a
field's protobuf number, its JSON name, its type and how a strategic merge treats it.
"""
