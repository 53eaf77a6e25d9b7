"""Many heads on one frozen backbone."""
