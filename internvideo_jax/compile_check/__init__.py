"""What a slice needs, before it is rented."""
