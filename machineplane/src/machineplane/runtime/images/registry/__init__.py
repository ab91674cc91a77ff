"""Registries by the OCI distribution protocol (and Docker's, of which it is made): settings, credentials, HTTP."""
