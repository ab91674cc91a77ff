"""The Kubernetes-compatible REST API of a machine: discovery, resources, tables, watches, patches, logs.

The way in is :func:`machineplane.kubeapi.server.serve_api`, with a
:class:`machineplane.kubeapi.backend.Backend`.
"""
