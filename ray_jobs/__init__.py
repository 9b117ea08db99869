"""The sharded map over Ray, and the jobs that use it."""
