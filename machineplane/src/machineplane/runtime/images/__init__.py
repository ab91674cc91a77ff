"""Images: import from archives, a content-addressed store, and layers unpacked for overlayfs.

The public face is :class:`~machineplane.runtime.images.store.ImageStore` with the values of
:mod:`~machineplane.runtime.images.model` and the errors of :mod:`~machineplane.runtime.images.errors`.
All of it is synchronous and safe in threads; asynchronous callers use ``trio.to_thread.run_sync``.
"""

from machineplane.runtime.images.errors import ImageError, ImageNotFound
from machineplane.runtime.images.model import Image, ImageConfig, ImageInfo, StoreLimits
from machineplane.runtime.images.store import ImageStore

__all__ = ["Image", "ImageConfig", "ImageError", "ImageInfo", "ImageNotFound", "ImageStore", "StoreLimits"]
