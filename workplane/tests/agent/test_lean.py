"""What the agent does without: modules that would cost each pod time and memory."""

import json
import subprocess
import sys

LOAD = """
import json, sys
from workplane.lean import importing
with importing():
    import workplane.app
loaded = sorted(sys.modules)
"""
# Whoever wants one of them has it, whether it was imported before or is from now on.
USE = """
import asyncio, ssl, trio, workplane.checks
from aioquic import tls
context = workplane.checks._unverified()
said = {
    "asyncio": asyncio.sleep.__module__,
    "ssl": type(context).__module__,
    "equal": [tls.ssl.CERT_NONE == ssl.CERT_NONE, tls.ssl.CERT_REQUIRED == ssl.CERT_REQUIRED],
    "trio": trio._ssl._stdlib_ssl.SSLError is ssl.SSLError,
    "OpenSSL": tls.crypto.X509Store.__module__,
    "service_identity": tls.service_identity.VerificationError.__module__,
    "certifi": tls.certifi.where().endswith(".pem"),
}
"""


def run(code: str) -> object:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_agent_starts_without_what_it_does_not_use() -> None:
    loaded = run(LOAD + "print(json.dumps(loaded))")
    without = {
        "asyncio.events",
        "h2.connection",
        "multiprocessing",
        "_ssl",
        "OpenSSL.crypto",
        "service_identity.cryptography",
    }
    assert isinstance(loaded, list) and not without & set(loaded)


def test_what_it_starts_without_is_there_for_whoever_uses_it() -> None:
    assert run(LOAD + USE + "print(json.dumps(said))") == {
        "asyncio": "asyncio.tasks",
        "ssl": "ssl",
        "equal": [True, True],
        "trio": True,
        "OpenSSL": "OpenSSL.crypto",
        "service_identity": "service_identity.exceptions",
        "certifi": True,
    }
