"""Use of the processor, the memory, the disk, the network and the GPUs of this machine, in MLflow's names."""

import time
from contextlib import suppress
from typing import Any

from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

SYSTEM_SECONDS = 10.0  # between samples, as in MLflow


class SystemMetrics:
    """Samples the machine at most once in SYSTEM_SECONDS. The processes of a stage are most of its load."""

    def __init__(self) -> None:
        self.monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with suppress(ImportError, RuntimeError):  # no GPU of NVIDIA here
            self.monitors.append(GPUMonitor())
        self.started = self.last = time.monotonic()

    def sample(self) -> tuple[int, dict[str, float]]:
        """The seconds since the start, and the metrics; none if the last sample is too recent."""
        now = time.monotonic()
        if now - self.last < SYSTEM_SECONDS:
            return 0, {}
        self.last = now
        metrics: dict[str, float] = {}
        for monitor in self.monitors:
            monitor.collect_metrics()
            metrics |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return int(now - self.started), metrics
