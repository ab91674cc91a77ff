"""What the agent does without: modules that would cost each pod time and memory."""

import json
import subprocess
import sys

LOAD = """
import json, sys
sys.modules["rich"] = None  # not in the image; structlog takes it where it is
from workplane.lean import Deferred, importing
with importing():
    import workplane.cli
with importing():
    import workplane.app
loaded = sorted(name for name, module in sys.modules.items() if not isinstance(module, Deferred))
"""
WITHOUT = set(
    """
    asyncio asyncio.events h2.connection multiprocessing concurrent.futures ssl _ssl OpenSSL OpenSSL.crypto service_identity
    service_identity.cryptography certifi ast dis ctypes _ctypes tempfile shutil email email.utils calendar dnslib dnslib.dns
    importlib.metadata pydoc unittest http.client sqlite3 gettext locale idna.core subprocess
    """.split()  # noqa: SIM905 - a table
)
MOST = 640
"""Modules; 610 when this was written, of which the image's Python has a few less."""
KEPT = """
import gc, linecache
gc.unfreeze()
gc.set_debug(gc.DEBUG_SAVEALL)
gc.collect()
said = {
    "unused": sum(isinstance(one, type) for one in gc.garbage) < 30,
    "sources": sum(name.startswith("<attrs generated") for name in linecache.cache),
}
"""
# Whoever wants one of them has it, whether it was imported before or is from now on.
USE = """
import ast, asyncio, inspect, ctypes.util, dis, dnslib, email.utils, linecache, ssl, tempfile, trio, workplane.checks
from aioquic import tls
from cryptography.x509 import RFC822Name
flags = dis.COMPILER_FLAG_NAMES
context = workplane.checks._unverified()
said = {
    "asyncio": asyncio.sleep.__module__,
    "ssl": type(context).__module__,
    "equal": [tls.ssl.CERT_NONE == ssl.CERT_NONE, tls.ssl.CERT_REQUIRED == ssl.CERT_REQUIRED],
    "trio": trio._ssl._stdlib_ssl.SSLError is ssl.SSLError,
    "OpenSSL": tls.crypto.X509Store.__module__,
    "service_identity": tls.service_identity.VerificationError.__module__,
    "certifi": tls.certifi.where().endswith(".pem"),
    "ast": [ast.literal_eval("[1]"), str(inspect.signature(len))],
    "dis": [dis.opmap["NOP"], flags == sys.modules["dis"].COMPILER_FLAG_NAMES],
    "dnslib": dnslib.A("127.0.0.1").data,
    "tempfile": tempfile.gettempprefix(),
    "ctypes": [trio._core._thread_cache.ctypes.CDLL is ctypes.CDLL, ctypes.sizeof(ctypes.c_int), ctypes.util.__file__[-7:]],
    "email": [RFC822Name("a@b.example").value, email.utils.parseaddr("N <a@b.example>")],
    "linecache": type(linecache.cache).__name__,
}
"""


def run(code: str) -> object:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_agent_starts_without_what_it_does_not_use() -> None:
    loaded = run(LOAD + "print(json.dumps(loaded))")
    assert isinstance(loaded, list)
    assert WITHOUT & set(loaded) == set()
    assert len(loaded) <= MOST


def test_what_is_made_twice_by_imports_is_not_kept() -> None:
    """attrs makes a class with slots beside the first one, and leaves its methods' source for debuggers."""
    assert run(LOAD + KEPT + "print(json.dumps(said))") == {"unused": True, "sources": 0}


def test_what_it_starts_without_is_there_for_whoever_uses_it() -> None:
    assert run(LOAD + USE + "print(json.dumps(said))") == {
        "asyncio": "asyncio.tasks",
        "ssl": "ssl",
        "equal": [True, True],
        "trio": True,
        "OpenSSL": "OpenSSL.crypto",
        "service_identity": "service_identity.exceptions",
        "certifi": True,
        "ast": [[1], "(obj, /)"],
        "dis": [9, True],
        "dnslib": [127, 0, 0, 1],
        "tempfile": "tmp",
        "ctypes": [True, 4, "util.py"],
        "email": ["a@b.example", ["N", "a@b.example"]],
        "linecache": "dict",
    }
