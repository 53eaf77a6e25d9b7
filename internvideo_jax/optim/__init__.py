"""Optimizer, schedules, averaged parameters. The only package that imports optax."""
