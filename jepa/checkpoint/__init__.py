"""The checkpoint format: plain files, folders of sharded parts, and loading state dicts strictly."""
