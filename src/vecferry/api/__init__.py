"""What a user calls: migrate, plan, verify, inspect, jobs."""
