"""The application with the in-memory backend, without a network."""

import sys
from pathlib import Path

import pytest

from machineplane.kubeapi.app import create_app
from machineplane.kubeapi.context import Api

sys.path.insert(0, str(Path(__file__).parent))
from kubeapi_client import Client
from kubeapi_memory import MemoryBackend


@pytest.fixture
def client() -> Client:
    backend = MemoryBackend()
    return Client(backend, create_app(Api(backend, release="0.1.0", now=lambda: 1767323345.0)))
