"""Studies: what is optimised, launchers and sweepers, and what came out of many runs."""
