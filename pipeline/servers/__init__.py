"""Prefect's servers, pools and workers."""
