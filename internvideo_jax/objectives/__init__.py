"""What is minimised: one file each, pure functions of (model, params, batch, key, step)."""
