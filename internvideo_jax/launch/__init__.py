"""Processes of a job on this machine, slices in clouds, sweeps."""
