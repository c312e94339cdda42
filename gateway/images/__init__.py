"""Container images of servers: resolved, verified, pulled, or built here. `ImageStore` is the way in.

Knows no policies, callers or running servers; the runtimes start what it returns."""

from gateway.images.image import Image
from gateway.images.store import ImageStore

__all__ = ["Image", "ImageStore"]
