"""Runs stages in processes of their own, on free GPUs, and ends them."""
