"""Planning with world models: planners, costs, episodes by named rules, baselines beside them, pictures."""
