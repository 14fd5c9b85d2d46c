"""Processes that train together: launch, process group, collectives, failures, DDP and FSDP."""
