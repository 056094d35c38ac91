"""What runs a stage: its interface, its step, and the supervisor that stops it."""
