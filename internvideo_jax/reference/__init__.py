"""Small runs of the recipes, whose curves come with the package: making them, and checking one."""
