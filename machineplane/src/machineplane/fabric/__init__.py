"""What the whole fabric runs, as seen and kept by one machine.

Nothing here is stored: a machine publishes a table of what *it* runs and holds (`table`), mirrors the tables of the
machines it is connected to while somebody reads (`view`), keeps the signed manifests of the workloads it guards
(`holdings`), and acts for those that are its turn (`guardian`). `objects` renders all that as Kubernetes objects.
"""
