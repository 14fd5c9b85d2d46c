"""From options to a run: composing, checking, building, stored configurations, the command line."""
