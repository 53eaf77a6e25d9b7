"""What all commands share: how they end, what they write to, what a person sees."""
