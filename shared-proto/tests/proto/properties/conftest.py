"""Property tests are judged by what they find, not by how fast a shared machine runs one example."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("magik", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("magik")
