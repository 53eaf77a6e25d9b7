"""Saving and loading: Orbax behind one wrapper, partial loads, provenance."""
