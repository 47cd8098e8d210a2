"""LocalCluster and pytest fixtures, for our own tests and for users'."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raftkv.testing.local_cluster import ClusterError, LocalCluster

__all__ = ["ClusterError", "LocalCluster"]


def __getattr__(name: str) -> Any:
    """Import on first use: the pytest plugin lives in this package and must load quickly."""
    if name in __all__:
        from raftkv.testing import local_cluster  # noqa: PLC0415 -- lazily is the point

        return getattr(local_cluster, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
