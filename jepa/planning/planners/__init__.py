"""Planners: searches for the actions of least cost, one file each."""
