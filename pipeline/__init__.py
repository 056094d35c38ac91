"""Prefect, the order of the stages, configuration, the command line. Knows no tensor and no video.

Prefect reads its environment when it is first imported, so it is set here, before any module of
this package can import Prefect. What the caller has set stays.
"""

import os

os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
