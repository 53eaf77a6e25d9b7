"""Networks that read token ids."""
