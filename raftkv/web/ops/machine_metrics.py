"""Figures for Prometheus that a worker finds on its machine: the disk, and certificates' ends.

They need no engine, so that a node whose engine hangs still shows them.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from raftkv.rpc.web_config import WebConfig

_logger = logging.getLogger(__name__)


class MachineMetrics(Collector):
    """The file system of the node's data, and until when its certificates are valid.

    Certificates are read once, now: what counts is what the node uses, and it does not read them
    again either. One that is renewed without a restart keeps its alert.
    """

    def __init__(self, config: WebConfig) -> None:
        self._data_dir = Path(config.data_dir) if config.data_dir else None
        self._ends = expiries(config.certificates)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Look at the disk now."""
        yield from self._disk()
        family = GaugeMetricFamily(
            "raftkv_certificate_expiry_timestamp_seconds",
            "End of the validity of a certificate that this node uses",
            labels=["certificate"],
        )
        for name, ends in self._ends.items():
            family.add_metric([name], ends)
        yield family

    def _disk(self) -> Iterable[GaugeMetricFamily]:
        if self._data_dir is None:
            return
        try:
            facts = os.statvfs(self._data_dir)
        except OSError as error:
            _logger.warning("%s: %s", self._data_dir, error.strerror)
            return
        for name, documentation, blocks in (
            ("free", "Space left for the node on the file system of its data", facts.f_bavail),
            ("size", "Size of the file system of the node's data", facts.f_blocks),
        ):
            yield GaugeMetricFamily(
                f"raftkv_disk_{name}_bytes", documentation, value=float(blocks * facts.f_frsize)
            )


def expiries(certificates: Mapping[str, str]) -> dict[str, float]:
    """Return for each file of certificates, by name, when the first of them ends (Unix time)."""
    if not certificates:
        return {}
    from cryptography import x509  # noqa: PLC0415 -- takes its time, and is for TLS only

    ends = {}
    for name, file in certificates.items():
        try:
            found = x509.load_pem_x509_certificates(Path(file).read_bytes())
        except (OSError, ValueError) as error:
            _logger.warning("certificate %s: %s: %s", name, file, error)
            continue
        ends[name] = min(one.not_valid_after_utc.timestamp() for one in found)
    return ends
