"""Every version-sensitive jax call: meshes, shardings, several processes, microbatches."""
