"""What families share: attention, MLP, block, stack, norms, position tables, pools."""
