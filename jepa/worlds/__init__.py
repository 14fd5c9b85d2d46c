"""Worlds to learn dynamics in: pure functions on batches of agents, and environments of gymnasium over them."""
