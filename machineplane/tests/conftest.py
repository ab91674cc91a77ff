import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "fabric"))  # its support is used by the backend's tests too
