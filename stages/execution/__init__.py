"""Running a stage: in a process of its own, its worker processes, its progress bar."""
