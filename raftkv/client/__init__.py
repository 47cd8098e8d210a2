"""Python client library; imports no server code."""

from raftkv.client import errors, types
from raftkv.client.client import Client
from raftkv.client.errors import *  # noqa: F403 -- its __all__ is taken over
from raftkv.client.types import *  # noqa: F403 -- same

__all__ = ["Client"]
__all__ += errors.__all__
__all__ += types.__all__
__all__.sort()
